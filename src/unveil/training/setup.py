"""From what was asked to a run that is known to be possible. Nothing is written here, so a mistake leaves no trace."""

from __future__ import annotations

import copy
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..data.identity import names_digest
from ..data.loader import Loader
from ..data.sources import Source, Subset, spread
from ..modeling.public_vits import StateDict
from ..modeling.seeding import seed_stage
from ..modeling.types import Modality
from ..recipes.recipe import Recipe
from ..recipes.registry import build_recipe, load_recipe
from ..runs.checkpoint import Checkpoint, read_latest
from ..runs.console import duration, log
from ..runs.folder import read_metadata
from ..runs.hardware import choose_device, git_commit, num_cores, versions
from .autoconfig import (
    MINUTES,
    AutoConfig,
    Change,
    configure_schedule,
    configure_shape,
    time_with_data,
    tune_step,
    validation_interval,
)
from .config import PretrainConfig, json_like
from .continue_schedule import find_before, keep_schedule, resume_schedule, schedule_facts, schedule_lines
from .data_setup import (
    Found,
    check_broken,
    declared_facts,
    declared_for,
    look_at,
    modalities_of,
    open_data,
    part_data,
    present,
    settle,
)
from .init_from import fitting, read_initial
from .run_metadata import (
    data_facts,
    layout_of,
    model_facts,
    part,
    read_declared,
    read_dials,
    read_modalities,
    read_settings,
    settings_facts,
    stage_lines,
)
from .trainer import Settings

_GLANCE = 100  # images that show most mistakes before all are read

Load = Callable[..., Recipe]


@dataclass(frozen=True)
class Prepared:
    """All that training takes. `facts` is what `run.json` is to say; `inspection` comes with a new run only."""

    recipe: Recipe
    train: Source
    held_out: Source
    modalities: tuple[Modality, ...]
    settings: Settings
    facts: dict[str, Any]
    inspection: Found | None = None
    weights: StateDict | None = None
    resume: Checkpoint | None = None


def prepare_new(asked: PretrainConfig, processes: int = 1) -> Prepared:
    """A new run: the data looked at, the recipe fitted to data and machine, its step tried and timed.

    Several processes share every batch, so each has a part of it to compute and the run takes that much less time.
    """
    load = load_recipe(asked.recipe)
    asked.check_dials(load)
    device = choose_device(asked.device)
    source = open_data(asked.data, declared_for(asked, load))
    before = find_before(asked)
    weights = read_initial(asked.init_from) if asked.init_from else None
    if len(source) > 2 * _GLANCE:
        glance = Subset(source, spread(len(source), _GLANCE))
        _first_plan(asked, load, glance, look_at(glance), len(source), device)
    log(f"looking at {asked.data} ...")
    found = look_at(source)
    log(textwrap.indent(str(found), "  "))
    source = settle(source, found)
    train, held_out = part_data(source, asked, asked.seed)
    check_broken(found, train, asked.max_broken)
    plan, modalities, built = _first_plan(asked, load, source, found, len(train), device)
    if weights is not None:
        weights = fitting(weights, built, asked)
    if before is not None:
        keep_schedule(plan, before)
    settings, image_seconds = tune_step(asked, built, modalities, device, processes)
    minutes = asked.minutes or MINUTES.get(device.type, 30.0)
    guess = copy.deepcopy(plan)
    if not asked.paper:
        configure_schedule(guess, len(train), image_seconds, minutes)
    built = _build(asked, load, guess.dials, modalities, len(train))
    image_seconds = _rehearsed(asked, built, settings, image_seconds, train, modalities, processes)
    if not asked.paper:
        configure_schedule(plan, len(train), image_seconds, minutes)
    built = _build(asked, load, plan.dials, modalities, len(train))
    built = resume_schedule(built, asked.continue_schedule, before.epochs if before else 0.0)
    check_shared(built.optim.batch_size, processes)
    per_epoch = max(1, len(train) // built.optim.batch_size)
    settings = replace(
        settings,
        micro_batch=min(settings.micro_batch, built.optim.batch_size // processes),
        signals_every=asked.signals_every
        or max(1 / per_epoch, validation_interval(built.epochs, image_seconds * len(train))),
        keep_every=asked.keep_every,
    )
    model = model_facts(built, modalities)
    _tell(plan.changes, built, settings, processes, model, len(train), len(train) * built.epochs * image_seconds)
    facts = {
        "unveil": __version__,
        "recipe": asked.name,
        "asked": asked.identity,
        "dials": {dial: json_like(value) for dial, value in plan.dials.items()},
        "modality": asdict(modalities[0]),
        **declared_facts(source),
        "changes": [asdict(change) for change in plan.changes],
        "data": data_facts(source, train, held_out, built, modalities[0]),
        "model": model,
        "settings": settings_facts(settings, built.optim.batch_size, asked.workers or num_cores(), processes),
        "optim": asdict(built.optim) | {"peak_lr": built.optim.peak_lr},
        "schedule": schedule_facts(built, asked.continue_schedule),
        "seed": asked.seed,
        "versions": versions(device),
        "git": git_commit(),
    }
    return Prepared(built, train, held_out, modalities, settings, facts, found, weights)


def prepare_again(asked: PretrainConfig, folder: Path, processes: int = 1) -> Prepared:
    """An unfinished run, taken up where its newest whole checkpoint left it, with the plan that it was begun with.

    So do the processes that join one which has just been begun, and a run may go on with more or fewer of them.
    """
    facts = read_metadata(folder)
    own = folder / "recipe.py"
    if asked.is_own_recipe and own.exists() and own.read_bytes() != Path(asked.recipe).expanduser().read_bytes():
        raise ValueError(
            f"{asked.recipe} has changed since {folder} was begun with what is now {own}; give another --out"
        )
    load = load_recipe(str(own) if own.exists() else asked.recipe)
    device = choose_device(asked.device)
    source = open_data(asked.data, read_declared(facts))
    data = part(facts, "data", folder)
    if names_digest(source) != data["names"]:
        raise ValueError(
            f"{folder} was begun on the {data['count']} images of {data['address']}; the {len(source)} of"
            f" {source.address} are others. Give the same images, another --out, or --overwrite"
        )
    resume, complaints = read_latest(folder)
    if complaints and resume is None:
        raise ValueError(
            f"{folder} has no whole checkpoint to go on from: {'; '.join(complaints)}; --overwrite starts anew"
        )
    for complaint in complaints:
        log(f"warning: {complaint}; the checkpoint before it is used")
    train, held_out = part_data(source, asked, part(facts, "seed", folder))
    modalities = read_modalities(facts, folder)
    built = _build(asked, load, read_dials(facts, folder), modalities, len(train))
    built = resume_schedule(built, asked.continue_schedule, part(facts, "optim", folder).get("trained_epochs", 0.0))
    weights = None
    if resume is None and asked.init_from:  # stopped before its first checkpoint
        weights = fitting(read_initial(asked.init_from), built, asked)
    settings = replace(read_settings(facts, folder), device=str(device), save_minutes=asked.save_minutes)
    if asked.precision != "auto":
        settings = replace(settings, precision=asked.precision)
    if asked.compile != "auto":
        settings = replace(settings, compile=asked.compile == "on")
    if asked.micro_batch:
        settings = replace(settings, micro_batch=asked.micro_batch)
    check_shared(built.optim.batch_size, processes)
    settings = replace(settings, micro_batch=min(settings.micro_batch, built.optim.batch_size // processes))
    facts["settings"] = settings_facts(settings, built.optim.batch_size, asked.workers or num_cores(), processes)
    log(f"continuing {folder} at step {resume.state['step'] if resume else 0}")
    return Prepared(built, train, held_out, modalities, settings, facts, weights=weights, resume=resume)


def _rehearsed(
    asked: PretrainConfig,
    built: Recipe,
    settings: Settings,
    alone: float,
    train: Source,
    modalities: Sequence[Modality],
    processes: int,
) -> float:
    """The seconds that an image takes in this run, with its batch and its data; `alone` is those of its step."""
    check_shared(built.optim.batch_size, processes)
    size = min(settings.micro_batch, built.optim.batch_size // processes)
    loader = Loader(
        train, built.view, size, asked.seed, asked.workers, max_broken=asked.max_broken, modality=modalities
    )
    return time_with_data(built, replace(settings, micro_batch=size), loader, alone * processes) / processes


def _first_plan(
    asked: PretrainConfig, load: Load, source: Source, found: Found, num_train: int, device: torch.device
) -> tuple[AutoConfig, tuple[Modality, ...], Recipe]:
    """The plan as far as the data decide it, and a recipe that is known to build."""
    modalities = modalities_of(source, found)
    plan = AutoConfig(load, asked.dials)
    if not asked.paper:
        configure_shape(plan, found, num_train, device)
    wanted = plan.dials.get("batch_size", 0)
    if wanted > num_train:
        plan.dials["batch_size"] = num_train
        plan.changes.append(Change("batch_size", wanted, num_train, "there are no more images"))
    built = _build(asked, load, plan.dials, modalities, num_train)
    try:
        for stage in built.stages:
            model = stage.build()
            model.masker.counts(layout_of(model.encoder))
            model.masker.check(layout_of(model.encoder), present(source))
    except (ArithmeticError, RuntimeError, TypeError) as error:
        raise _cannot_build(asked, error) from error
    return plan, modalities, _build(asked, load, plan.dials, modalities, num_train)


def _build(
    asked: PretrainConfig, load: Load, dials: Mapping[str, Any], modalities: Sequence[Modality], num_train: int
) -> Recipe:
    """The recipe as training begins with it: its batch is at most all images."""
    seed_stage(asked.seed, -1)
    try:
        built = build_recipe(load, modalities, dials)
    except (ArithmeticError, RuntimeError, TypeError) as error:
        raise _cannot_build(asked, error) from error
    return replace(built, optim=replace(built.optim, batch_size=min(built.optim.batch_size, num_train)))


def _cannot_build(asked: PretrainConfig, error: Exception) -> ValueError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    given = ", ".join(f"{name}={value}" for name, value in asked.dials.items()) or "its defaults"
    return ValueError(
        f"the recipe {asked.recipe} cannot be built with {given}: {type(error).__name__}: {error}"
        f" ({frame.filename}, line {frame.lineno})"
    )


def check_shared(batch: int, processes: int) -> None:
    """Raise ValueError for a batch that does not part into equal shares."""
    if batch % processes:
        below, above = batch // processes * processes, -(-batch // processes) * processes
        either = f"{below} or {above}" if below else str(above)
        raise ValueError(f"--batch-size {batch} has no equal shares for {processes} processes; give {either}")


def _tell(
    changes: list[Change],
    built: Recipe,
    settings: Settings,
    processes: int,
    model: Mapping[str, Any],
    num_train: int,
    seconds: float,
) -> None:
    for change in changes:
        used, paper = (" ".join(map(str, v)) if isinstance(v, tuple) else v for v in (change.used, change.paper))
        log(f"  --{change.dial.replace('_', '-')} {used}  (paper: {paper}; {change.why})")
    optim = built.optim
    times = -(-optim.batch_size // (settings.micro_batch * processes))
    where = f" in each of {processes} processes" if processes > 1 else ""
    log(
        f"  batch of {optim.batch_size} images per update, {settings.micro_batch} at once{where}"
        f"{f', {times} times' if times > 1 else ''}; peak learning rate {optim.peak_lr:.2e}; "
        f"{settings.precision} on {settings.device}"
    )
    for line in (*stage_lines(model), *schedule_lines(built)):
        log(line)
    log(f"training {built.epochs:g} epochs of {num_train:,} images: about {duration(seconds)}")
