"""Studies by name or by file, and the check of everything in one before anything runs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Sequence
from graphlib import CycleError, TopologicalSorter
from pkgutil import iter_modules

from ...evaluation.registry import find_protocol, options_of, protocols
from ...recipes.old_paths import accept_old_names
from ...recipes.registry import load_file
from ...runs.console import log, suggest, user_path
from .. import studies as built_in
from .design import Arm, RunOf, Scale, ScaleName, Setting, Study
from .jobs import OF_PRETRAIN, needs_of, recipe_options, settled

OF_EVALUATE = ("pool", "layer", "combine", "normalize", "baselines", "limit", "micro_batch")
ANALYSES = {
    "attention": ("labels", "foreground", "limit"),
    "blocks": ("limit", "samples"),
    "features": ("run_b", "limit"),
}


def studies() -> dict[str, Study]:
    """The built-in studies by name: each `Study` in a file of `studies/`, with hyphens for underscores."""
    modules = (importlib.import_module(f"{built_in.__name__}.{m.name}") for m in iter_modules(built_in.__path__))
    defined = {name.replace("_", "-"): value for module in modules for name, value in vars(module).items()}
    return {name: value for name, value in sorted(defined.items()) if isinstance(value, Study)}


def load_study(name: str) -> Study:
    """A built-in study by name, or the `study` of a file.

    Raises FileNotFoundError for a missing file, ValueError for an unknown name and for a file that fails.
    """
    if not name.endswith(".py"):
        name = name.replace("_", "-")
        _one_of("study", name, studies(), hint=" (or give a file such as my.py)")
        return studies()[name]
    file = user_path(name)
    accept_old_names()
    own = getattr(load_file(file, "study"), "study", None)
    if not isinstance(own, Study):
        raise ValueError(f"{name} has no study; write `study = Study(...)` in it, as unveil.study.Study says")
    if "dials=" in file.read_text(encoding="utf-8"):
        log(f"note: dials is now options; {name} has the old name")
    return own


def check(study: Study, scale: ScaleName) -> None:
    """Raise ValueError, with the valid names, for anything in a study that could not run."""
    _one_of("scale", scale, study.scales)
    at, arms = study.scales[scale], study.arms_at(scale)
    names = [arm.name for arm in arms]
    for what, all_names in (("arm", names), ("setting", [s.name for s in at.settings]), ("seed", list(at.seeds))):
        if not all_names or len(set(all_names)) < len(all_names):
            raise ValueError(f"a study has {what}s, each once; got {', '.join(map(str, all_names)) or 'none'}")
    for name in at.arms:
        _one_of("arm", name, [arm.name for arm in study.arms])
    _one_of("baseline", study.baseline, names, f"at scale {scale} ")
    for arm in arms:
        for option, value in arm.options.items():
            _one_of("option", option, [*recipe_options(arm.recipe), *OF_PRETRAIN], f"arm {arm.name}: ")
            if isinstance(value, RunOf) and value.arm == arm.name:
                raise ValueError(f"arm {arm.name} would start from its own run")
        for setting in at.settings:
            options = settled(arm, at, setting)
            if not options.get("paper") and "epochs" not in options:
                raise ValueError(
                    f"arm {arm.name} has no epochs: their number would be fitted to the machine, and runs would not"
                    " compare; give the scale options={'epochs': ...}"
                )
    for setting in at.settings:
        _check_lengths(arms, at, setting)
        _check_needs({arm.name: needs_of(arm, at, setting) for arm in arms})
    everything = {option for arm in study.arms for option in recipe_options(arm.recipe)} | set(OF_PRETRAIN)
    for option in {*at.options, *(option for setting in at.settings for option in setting.options)}:
        _one_of("option", option, everything, f"scale {scale}: ")
    _check_measurements(at)


def _check_lengths(arms: Sequence[Arm], at: Scale, setting: Setting) -> None:
    """Arms train equally long, those that start from other weights among themselves.

    A length that an arm sets itself is part of what is compared; one that its recipe sets is not.
    """
    groups: dict[bool, dict[str, float]] = {}
    for arm in arms if at.minutes is None else ():
        options = settled(arm, at, setting)
        length = float(options.get("epochs", recipe_options(arm.recipe).get("epochs", math.nan)))
        groups.setdefault(bool(options.get("init_from")), {})[arm.name] = length
    chosen = {arm.name for arm in arms if "epochs" in arm.options}
    for lengths in groups.values():
        text = ", ".join(f"{name} {length:g}" for name, length in lengths.items())
        if len({length for name, length in lengths.items() if name not in chosen}) > 1:
            raise ValueError(f"arms train for different epochs: {text}; give the scale options={{'epochs': ...}}")
        if len(set(lengths.values())) > 1:
            log(f"note: arms train for different epochs, which is part of what is compared: {text}")


def _check_needs(needs: dict[str, list[str]]) -> None:
    for name, others in needs.items():
        for other in others:
            _one_of("arm", other, needs, f"arm {name} starts from another: ")
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        raise ValueError(f"arm {error.args[1][0]} would start from a run that starts from its own") from None


def _check_measurements(at: Scale) -> None:
    for name, options in (*at.protocols.items(), *at.along.items()):
        _one_of("protocol", name, protocols())
        for option in options:
            _one_of("option", option, options_of(find_protocol(name), options), f"protocol {name}: ")
    for name, given in at.analyses.items():
        _one_of("analysis", name, ANALYSES)
        for argument in given:
            _one_of("argument", argument, ANALYSES[name], f"analysis {name}: ")
    for name in at.evaluation:
        _one_of("argument of evaluate", name, OF_EVALUATE)


def _one_of(what: str, name: str, known: Collection[str], where: str = "", hint: str = "") -> None:
    """Raise ValueError, with the nearest names, unless a name is a known one."""
    if name not in known:
        raise ValueError(f"{where}there is no {what} {name!r}; {suggest(name, known)}{hint}")
