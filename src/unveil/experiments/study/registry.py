"""Studies by name or by file, and the check of everything in one before anything runs."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ...evaluation.registry import find_protocol, options_of, protocols
from ...recipes.registry import load_file
from ...runs.suggest import suggest
from .design import Arm, RunOf, Scale, ScaleName, Study
from .jobs import OF_PRETRAIN, needs_of, recipe_dials, settled

OF_EVALUATE = ("pool", "baselines", "limit", "micro_batch")
ANALYSES = {
    "attention": ("labels", "foreground", "limit"),
    "blocks": ("limit", "samples"),
    "features": ("run_b", "limit"),
}


def studies() -> dict[str, Path]:
    """The built-in studies: name -> file."""
    files = sorted((Path(__file__).parents[1] / "studies").glob("*.py"))
    return {file.stem.replace("_", "-"): file for file in files if file.stem != "__init__"}


def summary(file: Path) -> str:
    """The first line of a study file's docstring, read as text."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def load_study(name: str) -> Study:
    """A built-in study by name, or the `study` of a file.

    Raises FileNotFoundError for a missing file, ValueError for an unknown name and for a file that fails.
    """
    if not name.endswith(".py"):
        _one_of("study", name.replace("_", "-"), studies(), hint=" (or give a file such as my.py)")
        study: Study = importlib.import_module(f"unveil.experiments.studies.{name.replace('-', '_')}").study
        return study
    own = getattr(load_file(Path(name).expanduser(), "study"), "study", None)
    if not isinstance(own, Study):
        raise ValueError(f"{name} has no study; write `study = Study(...)` in it, as unveil.study.Study says")
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
        known = recipe_dials(arm.recipe)
        for dial in arm.dials:
            _one_of("dial", dial, [*known, *OF_PRETRAIN], f"arm {arm.name}: ")
        for setting in at.settings:
            for other in needs_of(arm, at, setting):
                _one_of("arm", other, names, f"arm {arm.name} starts from another: ")
            _check_cycle(arm, {a.name: needs_of(a, at, setting) for a in arms})
            dials = settled(arm, at, setting)
            if not dials.get("paper") and "epochs" not in dials:
                raise ValueError(
                    f"arm {arm.name} has no epochs: their number would be fitted to the machine, and runs would not"
                    " compare; give the scale dials={'epochs': ...}"
                )
    shared = {*at.dials, *(dial for setting in at.settings for dial in setting.dials)}
    everything = {dial for arm in study.arms for dial in recipe_dials(arm.recipe)} | set(OF_PRETRAIN)
    for dial in shared:
        _one_of("dial", dial, everything, f"scale {scale}: ")
    _check_measurements(at)


def _check_cycle(arm: Arm, needs: Mapping[str, Sequence[str]]) -> None:
    if any(isinstance(value, RunOf) and value.arm == arm.name for value in arm.dials.values()):
        raise ValueError(f"arm {arm.name} would start from its own run")
    visited, ahead = set[str](), list(needs[arm.name])
    while ahead:
        name = ahead.pop()
        if name == arm.name:
            raise ValueError(f"arm {arm.name} would start from a run that starts from its own")
        if name not in visited:
            visited.add(name)
            ahead += needs.get(name, ())


def _check_measurements(at: Scale) -> None:
    for name, dials in (*at.protocols.items(), *at.along.items()):
        _one_of("protocol", name, protocols())
        for dial in dials:
            _one_of("option", dial, options_of(find_protocol(name)), f"protocol {name}: ")
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
