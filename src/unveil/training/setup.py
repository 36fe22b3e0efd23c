"""From options to a run that is known to work. Nothing is written here, so a mistake leaves no files behind."""

from __future__ import annotations

import copy
import math
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..data.loader import Loader
from ..data.sources import Source, Subset, spread
from ..data.splits import names_digest
from ..modeling.rng import seed_stage
from ..modeling.types import Modality
from ..recipes.own_score import content_of, own_scores
from ..recipes.recipe import Recipe
from ..recipes.registry import build_recipe, load_recipe
from ..recipes.run import Run
from ..runs.checkpoint import Checkpoint, read_latest
from ..runs.console import duration, in_notebook, log, user_path
from ..runs.folder import OWN_RECIPE, OWN_SCORE, check_checkpoints, read_metadata
from ..runs.hardware import choose_device
from ..runs.trust import remember
from .autoconfig import (
    MINUTES,
    AutoConfig,
    configure_schedule,
    configure_shape,
    configure_size,
    largest_batch,
    validation_interval,
)
from .config import PretrainConfig
from .data_setup import (
    DataInspection,
    check_augment_on,
    check_unreadable,
    declared_for,
    inspect_data,
    modalities_of,
    open_data,
    present,
    settle,
    split_data,
)
from .extend import without_old_schedule
from .init_from import (
    PreviousTraining,
    check_rate,
    check_schedule,
    keep_schedule,
    previous_training,
    resume_schedule,
    schedule_lines,
)
from .initial_weights import (
    Initial,
    adapt_weights,
    configure_initial,
    configure_positions,
    read_initial,
    with_statistics,
)
from .pace import Plan
from .run_metadata import layout_of, model_metadata, read_settings, run_metadata, settings_metadata, stage_lines
from .timing import TRIALS_FROM, adaptive_threads, build_once, choose_fastest, time_with_data, tune_step
from .trainer import Settings

_SAMPLE = 100  # images that show most mistakes before all are inspected


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
    initial: Initial | None = None
    resume: Checkpoint | None = None
    config: PretrainConfig | None = None
    plan: Plan | None = None

    @property
    def step(self) -> int:
        """The step of the checkpoint that training resumes from; -1 before any."""
        return int(self.resume.state["step"]) if self.resume else -1


def set_up_new(config: PretrainConfig, processes: int = 1) -> TrainingSetup:
    """A new run: options resolved and checked on the meta device, then one update timed on this machine.

    The recipe and each stage's model are built once on the meta device, once for timing and once for training.
    `processes` share every batch, so the run takes that much less time.
    """
    function = load_recipe(config.recipe)
    config.check_recipe_options(function)
    device = choose_device(config.device)
    source = open_data(config.address, declared_for(config, function))
    check_augment_on(config, source)
    previous = previous_training(config)
    initial = read_initial(config)
    first = None
    if len(source) > 2 * _SAMPLE:
        sample = Subset(source, spread(len(source), _SAMPLE))
        first = _Draft(config, function, device, sample, inspect_data(sample), len(source), previous, initial)
        first.check(sample)
    log(f"inspecting {config.address} ...")
    inspection = inspect_data(source, config.check)
    log(textwrap.indent(str(inspection), "  "))
    source = settle(source, inspection)
    train, held_out = split_data(source, config, config.seed)
    check_unreadable(inspection, train, config.max_broken)

    draft = _Draft(config, function, device, source, inspection, len(train), previous, initial, first)
    model = draft.check(source)
    if initial is not None:
        initial = adapt_weights(initial, draft.recipe, config)
    draft.auto.limit_batch(len(train))
    settings, image_seconds = draft.measure(train, processes)
    draft.set_schedule(draft.auto, image_seconds)

    recipe = resume_schedule(draft.build(), config.continue_schedule, previous.epochs if previous else 0.0)
    check_schedule(recipe)
    settings = _final_settings(settings, config, recipe, len(train), image_seconds, processes)
    if len(model["stages"]) != len(recipe.stages):  # a stage takes all the epochs, or none
        model = model_metadata(build_once(recipe), draft.modalities)
    for stage, entry in zip(recipe.stages, model["stages"], strict=True):
        entry["epochs"] = stage.epochs
    data = (source, train, held_out)
    plan = Plan(image_seconds * recipe.optim.batch_size, draft.budget)
    metadata = run_metadata(config, draft.auto, draft.modalities, data, recipe, model, settings, processes)
    metadata["plan"] = asdict(plan)
    _log_plan(metadata, recipe, len(train), image_seconds)
    resolved = replace(config, val_every=settings.val_every, recipe_options=draft.auto.options)
    return TrainingSetup(
        recipe, train, held_out, draft.modalities, settings, metadata, inspection, initial, config=resolved, plan=plan
    )


def set_up_resumed(config: PretrainConfig, folder: Path, processes: int = 1) -> TrainingSetup:
    """An unfinished run, from its newest whole checkpoint, with the options that it was started with.

    The other processes of a run that has just been started do the same, and a run may continue with more or fewer.
    """
    run, metadata = Run.open(folder, config.trust), read_metadata(folder)
    own = folder / OWN_RECIPE
    if config.is_own_recipe and own.exists():
        content = own.read_bytes()
        if content != user_path(config.recipe).read_bytes():
            raise ValueError(f"{config.recipe} has changed since {folder} was started with {own}; give another --out")
        remember(user_path(config.recipe), content)
    for option in own_scores(config.recipe_options).values():
        content = content_of(option)
        if (folder / OWN_SCORE).read_bytes() != content:
            raise ValueError(f"masking={option} has changed since {folder} was started with it; give another --out")
        remember(folder / OWN_SCORE, content)
    device = choose_device(config.device)
    source = open_data(config.address, run.declared, as_recorded=True)  # its images are compared below
    check_augment_on(config, source)
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
    if resume is None:
        check_checkpoints(folder)
    else:
        resume = replace(resume, state=without_old_schedule(resume.state, metadata))
    for complaint in complaints:
        log(f"warning: {complaint}; the checkpoint before it is used")
    train, held_out = split_data(source, config, run.config.seed)
    trained_epochs = run.config.schedule.trained_epochs if run.config.schedule else 0.0
    recipe = resume_schedule(_limit_batch(run.recipe(), len(train)), config.continue_schedule, trained_epochs)
    initial = read_initial(config) if resume is None else None  # stopped before its first checkpoint
    if initial is not None:
        initial = adapt_weights(initial, recipe, config)
    batch = recipe.optim.batch_size
    check_divisible(batch, processes)
    settings = read_settings(metadata.get("settings", {}))
    settings = replace(
        settings,
        device=str(device),
        precision=settings.precision if config.precision == "auto" else config.precision,
        compile=settings.compile and not config.shard if config.compile == "auto" else config.compile == "on",
        micro_batch=min(config.micro_batch or settings.micro_batch, batch // processes),
        save_minutes=config.save_minutes,
        shard=config.shard,
        checkpoint_activations=config.checkpoint_activations,
        checkpoint_format=config.checkpoint_format,
        adaptive_threads=adaptive_threads(config, device),
    )
    metadata["settings"] = settings_metadata(settings, batch, config.workers, processes)
    log(f"continuing {folder} at step {resume.state['step'] if resume else 0}")
    parts = (recipe, train, held_out, run.modalities, settings, metadata)
    return TrainingSetup(*parts, initial=initial, resume=resume, plan=Plan.read(metadata))


class _Draft:
    """A run before its schedule is set: the options that images of this kind and the device suggest, and the recipe
    with them, whose stages build their model once.
    """

    def __init__(
        self,
        config: PretrainConfig,
        function: Callable[..., Recipe],
        device: torch.device,
        source: Source,
        inspection: DataInspection,
        num_train: int,
        previous: PreviousTraining | None,
        initial: Initial | None,
        earlier: _Draft | None = None,
    ):
        self.config, self.function, self.device, self.num_train = config, function, device, num_train
        self.modalities = with_statistics(modalities_of(source, inspection), initial, inspection)
        self.auto = AutoConfig(function, config.recipe_options, config.paper)
        check_rate(self.auto, previous)
        if not config.paper:
            least = configure_initial(self.auto, initial, self.modalities[0]) if initial else 0
            configure_shape(self.auto, inspection, num_train, device, self.budget, least)
            if initial is not None:
                configure_positions(self.auto, initial)
        configure_size(self.auto)
        if previous is not None:
            keep_schedule(self.auto, previous)
        shapes = [{**asdict(m), "mean": None, "std": None} for m in self.modalities]
        self.shape = (dict(self.auto.options), shapes)
        self.fast_batch = 1  # larger ones were measured to be faster
        if earlier is None:
            self.checked = self._on_meta()
        else:  # of another shape than the earlier draft, it is checked as it is timed
            self.checked = earlier.checked if earlier.shape == self.shape else self.recipe

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe whose models are timed."""
        return build_once(self.build())

    def _on_meta(self) -> Recipe:
        """The recipe and its models without memory for weights; of a recipe that needs values, with weights."""
        try:
            with torch.device("meta"):
                recipe = build_once(self.build())
                for stage in recipe.stages:
                    stage.build()
        except (ArithmeticError, RuntimeError, TypeError, ValueError):
            return self.recipe
        return recipe

    def build(self) -> Recipe:
        """The recipe with the options set by now, as training starts with it."""
        seed_stage(self.config.seed, -1)
        with self._explained():
            return _limit_batch(build_recipe(self.function, self.modalities, self.auto.options), self.num_train)

    def check(self, source: Source) -> dict[str, Any]:
        """The model's counts for `run.json`. Raises ValueError for a recipe that cannot be built or masks too much."""
        with self._explained():
            for stage in self.checked.stages:
                model = stage.build()
                model.masker.counts(layout_of(model.encoder))
                model.masker.check(layout_of(model.encoder), present(source))
            return model_metadata(self.checked, self.modalities)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """An error of the recipe, with the options that it was given and the line that fails."""
        try:
            yield
        except (ArithmeticError, RuntimeError, TypeError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            given = ", ".join(f"{name}={value}" for name, value in self.config.recipe_options.items())
            raise ValueError(
                f"the recipe {self.config.recipe} cannot be built with {given or 'its defaults'}:"
                f" {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
            ) from error

    @property
    def minutes(self) -> float:
        """The time to train for, where the epochs are not given."""
        return self.config.minutes or MINUTES.get(self.device.type, 30.0)

    @property
    def budget(self) -> float | None:
        """The seconds that set the epochs; None where these are given, or the paper's."""
        is_set = not self.config.paper and "epochs" in self.auto.defaults and "epochs" not in self.auto.given
        return 60 * self.minutes if is_set else None

    def set_schedule(self, auto: AutoConfig, image_seconds: float) -> None:
        """Set epochs, batch and rate, unless the paper's are kept."""
        if not self.config.paper:
            configure_schedule(auto, self.num_train, image_seconds, self.minutes, self.fast_batch, self.device.type)

    def measure(self, train: Source, processes: int) -> tuple[Settings, float]:
        """Settings that work on the device, and the seconds that training takes per image, loading included."""
        config, recipe = self.config, self.recipe
        settings, seconds = tune_step(config, recipe, self.modalities, self.device, processes)
        guess = copy.deepcopy(self.auto)
        self.set_schedule(guess, seconds)
        batch = guess.options.get("batch_size", recipe.optim.batch_size)
        check_divisible(batch, processes)
        size = min(settings.micro_batch, batch // processes)
        planned = guess.options.get("epochs", recipe.epochs) * self.num_train * seconds
        if self.device.type == "cpu" and planned >= TRIALS_FROM:
            of_size = replace(settings, micro_batch=size)
            largest = 0 if config.paper else largest_batch(self.auto, planned / seconds, self.num_train) // processes
            largest = min(largest, settings.micro_batch)
            chosen, step_seconds = choose_fastest(config, recipe, of_size, self.modalities, planned, largest)
            self.fast_batch = chosen.micro_batch * processes if chosen.micro_batch > size else 1
            size, seconds = chosen.micro_batch, step_seconds / chosen.micro_batch / processes
            settings = replace(chosen, micro_batch=settings.micro_batch)
        loader = Loader(
            train,
            recipe.view,
            size,
            config.seed,
            config.workers,
            max_broken=config.max_broken,
            modality=self.modalities,
            repeats=math.gcd(min(size, len(train)), config.repeats),
            pinned=self.device.type == "cuda",
            on_device=config.augment_on == "device",
        )
        with_data = time_with_data(recipe, replace(settings, micro_batch=size), loader, seconds * processes)
        return settings, with_data / processes


def _limit_batch(recipe: Recipe, num_train: int) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, batch_size=min(recipe.optim.batch_size, num_train)))


def _final_settings(
    settings: Settings, config: PretrainConfig, recipe: Recipe, num_train: int, image_seconds: float, processes: int
) -> Settings:
    """The settings with a micro-batch that the batch holds, and validations as often as the schedule suggests."""
    batch = recipe.optim.batch_size
    check_divisible(batch, processes)
    check_repeats(batch, config.repeats)
    interval = validation_interval(recipe.epochs, image_seconds * num_train)
    interval = max(interval, 1 / max(1, num_train // batch))  # an update at least
    micro_batch = min(settings.micro_batch, batch // processes)
    return replace(settings, micro_batch=micro_batch, val_every=config.val_every or interval)


def check_divisible(batch: int, processes: int) -> None:
    """Raise ValueError for a batch that the processes cannot share equally."""
    if batch % processes:
        below, above = batch // processes * processes, -(-batch // processes) * processes
        either = f"{below} or {above}" if below else str(above)
        raise ValueError(f"--batch-size {batch} is not divisible by the world size {processes}; give {either}")


def check_repeats(batch: int, repeats: int) -> None:
    """Raise ValueError for a batch that holds no whole number of images with so many views of each."""
    if batch % repeats:
        raise ValueError(
            f"a batch of {batch} views holds no whole number of images with --repeats {repeats}; give --batch-size"
            f" {max(1, batch // repeats) * repeats}, or other --repeats"
        )


def _log_plan(metadata: Mapping[str, Any], recipe: Recipe, num_train: int, image_seconds: float) -> None:
    for change in metadata["changes"]:
        used, paper = (" ".join(map(str, v)) if isinstance(v, tuple) else v for v in (change["used"], change["paper"]))
        flag = "--" + change["option"].replace("_", "-")
        as_typed = f"{change['option']}={change['used']!r}" if in_notebook() else f"{flag} {used}"
        log(f"  {as_typed}  (paper: {paper}; {change['why']})")
    settings = metadata["settings"]
    processes, times = settings["processes"], settings["accumulation"]
    where = f" in each of {processes} processes" if processes > 1 else ""
    log(
        f"  batch of {recipe.optim.batch_size} images per update, {settings['micro_batch']} at once{where}"
        f"{f', {times} times' if times > 1 else ''}; {settings['precision']} on {settings['device']}"
    )
    for line in (*stage_lines(metadata["model"]), *schedule_lines(recipe)):
        log(line)
    epochs = f"{recipe.epochs:g} epoch{'s' * (recipe.epochs != 1)}"
    log(f"training {epochs} of {num_train:,} images: about {duration(num_train * recipe.epochs * image_seconds)}")
