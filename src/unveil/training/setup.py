"""From options to a run that is known to work. Nothing is written here, so a mistake leaves no files behind."""

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
from ..data.loader import Loader
from ..data.sources import Source, Subset, spread
from ..data.splits import names_digest
from ..modeling.public_vits import StateDict
from ..modeling.rng import seed_stage
from ..modeling.types import Modality
from ..recipes.recipe import Recipe
from ..recipes.registry import build_recipe, load_recipe
from ..recipes.run import Run
from ..runs.checkpoint import Checkpoint, read_latest
from ..runs.console import duration, log
from ..runs.folder import read_metadata
from ..runs.hardware import choose_device, git_commit, num_cores, versions
from .autoconfig import MINUTES, AutoConfig, Change, configure_schedule, configure_shape, validation_interval
from .config import PretrainConfig, json_like
from .data_setup import (
    DataInspection,
    check_unreadable,
    declared_for,
    declared_metadata,
    inspect_data,
    modalities_of,
    open_data,
    present,
    settle,
    split_data,
)
from .init_from import (
    adapt_weights,
    keep_schedule,
    previous_training,
    read_initial,
    resume_schedule,
    schedule_lines,
    schedule_metadata,
)
from .run_metadata import (
    data_metadata,
    layout_of,
    model_metadata,
    read_settings,
    settings_metadata,
    stage_lines,
)
from .timing import build_once, time_with_data, tune_step
from .trainer import Settings

_SAMPLE = 100  # images that show most mistakes before all are inspected

RecipeFunction = Callable[..., Recipe]


@dataclass(frozen=True)
class TrainingSetup:
    """All that training needs. `metadata` is the content of `run.json`; only a new run has an `inspection`,
    and a `config` with all options resolved.
    """

    recipe: Recipe
    train: Source
    held_out: Source
    modalities: tuple[Modality, ...]
    settings: Settings
    metadata: dict[str, Any]
    inspection: DataInspection | None = None
    weights: StateDict | None = None
    resume: Checkpoint | None = None
    config: PretrainConfig | None = None


def set_up_new(config: PretrainConfig, processes: int = 1) -> TrainingSetup:
    """A new run: options resolved and checked on the meta device, then one update timed on this machine.

    The recipe and each stage's model are built once on the meta device, once for timing and once for training.
    `processes` share every batch, so the run takes that much less time.
    """
    function = load_recipe(config.recipe)
    config.check_recipe_options(function)
    device = choose_device(config.device)
    source = open_data(config.data, declared_for(config, function))
    previous = previous_training(config)
    weights = read_initial(config.init_from) if config.init_from else None
    draft: _Draft | None = None
    if len(source) > 2 * _SAMPLE:
        sample = Subset(source, spread(len(source), _SAMPLE))
        draft = _Draft(config, function, sample, inspect_data(sample), len(source), device)
        draft.check(draft.on_meta(), sample)
    log(f"inspecting {config.data} ...")
    inspection = inspect_data(source)
    log(textwrap.indent(str(inspection), "  "))
    source = settle(source, inspection)
    train, held_out = split_data(source, config, config.seed)
    check_unreadable(inspection, train, config.max_broken)

    full = _Draft(config, function, source, inspection, len(train), device)
    auto, modalities = full.auto, full.modalities
    if draft is None or draft.key == full.key:
        model = full.check((draft or full).on_meta(), source)
        timing = full.build()
    else:  # the sample was of another shape than all images
        timing = full.build()
        model = full.check(timing, source)
    if weights is not None:
        weights = adapt_weights(weights, timing, config)
    if previous is not None:
        keep_schedule(auto, previous)
    auto.limit_batch(len(train))
    settings, image_seconds = tune_step(config, timing, modalities, device, processes)
    minutes = config.minutes or MINUTES.get(device.type, 30.0)
    if not config.paper:
        guess = copy.deepcopy(auto)
        configure_schedule(guess, len(train), image_seconds, minutes)
        batch = guess.options.get("batch_size", timing.optim.batch_size)
    else:
        batch = timing.optim.batch_size
    check_divisible(batch, processes)
    size = min(settings.micro_batch, batch // processes)
    loader = Loader(
        train, timing.view, size, config.seed, config.workers, max_broken=config.max_broken, modality=modalities
    )
    image_seconds = time_with_data(timing, replace(settings, micro_batch=size), loader, image_seconds * processes)
    image_seconds /= processes
    if not config.paper:
        configure_schedule(auto, len(train), image_seconds, minutes)

    recipe = _build(config, function, auto.options, modalities, len(train))
    recipe = resume_schedule(recipe, config.continue_schedule, previous.epochs if previous else 0.0)
    check_divisible(recipe.optim.batch_size, processes)
    per_epoch = max(1, len(train) // recipe.optim.batch_size)
    interval = max(1 / per_epoch, validation_interval(recipe.epochs, image_seconds * len(train)))
    settings = replace(
        settings,
        micro_batch=min(settings.micro_batch, recipe.optim.batch_size // processes),
        val_every=config.val_every or interval,
        save_every=config.save_every,
    )
    if len(model["stages"]) != len(recipe.stages):  # a stage takes all the epochs, or none
        model = model_metadata(build_once(recipe), modalities)
    for stage, entry in zip(recipe.stages, model["stages"], strict=True):
        entry["epochs"] = stage.epochs
    _log_plan(auto.changes, recipe, settings, processes, model, len(train), len(train) * recipe.epochs * image_seconds)
    metadata = {
        "unveil": __version__,
        "recipe": config.name,
        "asked": config.fingerprint,
        "dials": {name: json_like(value) for name, value in auto.options.items()},
        "modality": asdict(modalities[0]),
        **declared_metadata(source),
        "changes": [asdict(change) for change in auto.changes],
        "data": data_metadata(source, train, held_out, recipe, modalities[0]),
        "model": model,
        "settings": settings_metadata(settings, recipe.optim.batch_size, config.workers or num_cores(), processes),
        "optim": asdict(recipe.optim) | {"peak_lr": recipe.optim.peak_lr},
        "schedule": schedule_metadata(recipe, config.continue_schedule),
        "seed": config.seed,
        "versions": versions(device),
        "git": git_commit(),
    }
    resolved = replace(config, val_every=settings.val_every, recipe_options=auto.options)
    return TrainingSetup(recipe, train, held_out, modalities, settings, metadata, inspection, weights, config=resolved)


def set_up_resumed(config: PretrainConfig, folder: Path, processes: int = 1) -> TrainingSetup:
    """An unfinished run, from its newest whole checkpoint, with the options that it was started with.

    The other processes of a run that has just been started do the same, and a run may continue with more or fewer.
    """
    run, metadata = Run.open(folder), read_metadata(folder)
    own = folder / "recipe.py"
    if config.is_own_recipe and own.exists() and own.read_bytes() != Path(config.recipe).expanduser().read_bytes():
        raise ValueError(f"{config.recipe} has changed since {folder} was started with {own}; give another --out")
    device = choose_device(config.device)
    source = open_data(config.data, run.declared)
    stored = run.config.data
    if names_digest(source) != stored.names:
        raise ValueError(
            f"{folder} was started on the {stored.count} images of {stored.address}; the {len(source)} of"
            f" {source.address} are others. Give the same images, another --out, or --overwrite"
        )
    resume, complaints = read_latest(folder)
    if complaints and resume is None:
        reasons = "; ".join(complaints)
        raise ValueError(f"{folder} has no whole checkpoint to continue from: {reasons}; --overwrite starts again")
    for complaint in complaints:
        log(f"warning: {complaint}; the checkpoint before it is used")
    train, held_out = split_data(source, config, run.config.seed)
    recipe = _limit_batch(run.recipe(), len(train))
    trained_epochs = run.config.schedule.trained_epochs if run.config.schedule else 0.0
    recipe = resume_schedule(recipe, config.continue_schedule, trained_epochs)
    weights = None
    if resume is None and config.init_from:  # stopped before its first checkpoint
        weights = adapt_weights(read_initial(config.init_from), recipe, config)
    check_divisible(recipe.optim.batch_size, processes)
    settings = replace(read_settings(metadata["settings"]), device=str(device), save_minutes=config.save_minutes)
    if config.precision != "auto":
        settings = replace(settings, precision=config.precision)
    if config.compile != "auto":
        settings = replace(settings, compile=config.compile == "on")
    micro_batch = min(config.micro_batch or settings.micro_batch, recipe.optim.batch_size // processes)
    settings = replace(settings, micro_batch=micro_batch)
    workers = config.workers or num_cores()
    metadata["settings"] = settings_metadata(settings, recipe.optim.batch_size, workers, processes)
    log(f"continuing {folder} at step {resume.state['step'] if resume else 0}")
    return TrainingSetup(recipe, train, held_out, run.modalities, settings, metadata, weights=weights, resume=resume)


class _Draft:
    """A recipe with the options that images of this kind and this device suggest, before its schedule is set."""

    def __init__(
        self,
        config: PretrainConfig,
        function: RecipeFunction,
        source: Source,
        inspection: DataInspection,
        num_train: int,
        device: torch.device,
    ):
        self.config, self.function, self.num_train = config, function, num_train
        self.modalities = modalities_of(source, inspection)
        self.auto = AutoConfig(function, config.recipe_options)
        if not config.paper:
            configure_shape(self.auto, inspection, num_train, device)
        shapes = [{**asdict(m), "mean": None, "std": None} for m in self.modalities]
        self.key = (dict(self.auto.options), shapes)  # two drafts with the same key have the same counts
        self.on_meta_device: Recipe | None = None

    def build(self) -> Recipe:
        """The recipe, each stage's model built at most once."""
        return build_once(_build(self.config, self.function, self.auto.options, self.modalities, self.num_train))

    def on_meta(self) -> Recipe:
        """The recipe and its models without memory for weights; of a recipe that needs values, with weights."""
        if self.on_meta_device is None:
            try:
                with torch.device("meta"):
                    self.on_meta_device = self.build()
                    for stage in self.on_meta_device.stages:
                        stage.build()
            except (ArithmeticError, RuntimeError, TypeError):
                self.on_meta_device = self.build()
        return self.on_meta_device

    def check(self, recipe: Recipe, source: Source) -> dict[str, Any]:
        """The model's counts for `run.json`. Raises ValueError for a recipe that cannot be built or masks too much."""
        try:
            for stage in recipe.stages:
                model = stage.build()
                model.masker.counts(layout_of(model.encoder))
                model.masker.check(layout_of(model.encoder), present(source))
            return model_metadata(recipe, self.modalities)
        except (ArithmeticError, RuntimeError, TypeError) as error:
            raise _cannot_build(self.config, error) from error


def _build(
    config: PretrainConfig,
    function: RecipeFunction,
    options: Mapping[str, Any],
    modalities: Sequence[Modality],
    num_train: int,
) -> Recipe:
    """The recipe as training starts with it, its batch cut to the number of images."""
    seed_stage(config.seed, -1)
    try:
        recipe = build_recipe(function, modalities, options)
    except (ArithmeticError, RuntimeError, TypeError) as error:
        raise _cannot_build(config, error) from error
    return _limit_batch(recipe, num_train)


def _limit_batch(recipe: Recipe, num_train: int) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, batch_size=min(recipe.optim.batch_size, num_train)))


def _cannot_build(config: PretrainConfig, error: Exception) -> ValueError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    given = ", ".join(f"{name}={value}" for name, value in config.recipe_options.items()) or "its defaults"
    return ValueError(
        f"the recipe {config.recipe} cannot be built with {given}: {type(error).__name__}: {error}"
        f" ({frame.filename}, line {frame.lineno})"
    )


def check_divisible(batch: int, processes: int) -> None:
    """Raise ValueError for a batch that the processes cannot share equally."""
    if batch % processes:
        below, above = batch // processes * processes, -(-batch // processes) * processes
        either = f"{below} or {above}" if below else str(above)
        raise ValueError(f"--batch-size {batch} is not divisible by the world size {processes}; give {either}")


def _log_plan(
    changes: list[Change],
    recipe: Recipe,
    settings: Settings,
    processes: int,
    model: Mapping[str, Any],
    num_train: int,
    seconds: float,
) -> None:
    for change in changes:
        used, paper = (" ".join(map(str, v)) if isinstance(v, tuple) else v for v in (change.used, change.paper))
        log(f"  --{change.dial.replace('_', '-')} {used}  (paper: {paper}; {change.why})")
    batch = recipe.optim.batch_size
    times = -(-batch // (settings.micro_batch * processes))
    where = f" in each of {processes} processes" if processes > 1 else ""
    log(
        f"  batch of {batch} images per update, {settings.micro_batch} at once{where}"
        f"{f', {times} times' if times > 1 else ''}; {settings.precision} on {settings.device}"
    )
    for line in (*stage_lines(model), *schedule_lines(recipe)):
        log(line)
    epochs = f"{recipe.epochs:g} epoch{'s' * (recipe.epochs != 1)}"
    log(f"training {epochs} of {num_train:,} images: about {duration(seconds)}")
