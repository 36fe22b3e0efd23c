"""The cost of training a study: operations counted on shapes, time from measured steps, and epochs of equal time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...data.modality_config import BUILT_IN
from ...data.sources import open_source
from ...modeling.types import RGB
from ...recipes.recipe import Recipe
from ...recipes.registry import build_recipe, default_modalities, load_recipe
from ...runs.atomic import write_json
from ...runs.console import log
from ...runs.hardware import choose_device, choose_precision
from ...runs.lock import hold
from ...training.config import PretrainConfig
from ...training.run_metadata import flops
from ...training.timing import measure_step, tune_step
from ...training.trainer import Settings
from .design import Arm, Scale, ScaleName, Setting, Study
from .jobs import OF_PRETRAIN, images_of, settled

FILE = "epochs.json"
_MEASURED_FLOPS = {"cpu": 5e9, "cuda": 5e12}  # of the timed step, about: seconds of waiting at most
_MAX_IMAGES, _MIN_IMAGES = 256, 2  # in the timed step
_ROUNDS = 4  # of timing all arms in turns, after the first, so that other load on the machine affects all alike
_WAIT = 0.1  # seconds until another process has written
Epochs = Mapping[str, float]


@dataclass(frozen=True)
class RunCost:
    """Training of one run: images seen, operations (two per multiply-add) forward and backward; seconds on a device."""

    arm: str
    setting: str
    runs: int
    images: float
    flops: float
    seconds: float


def estimate_costs(study: Study, scale: ScaleName, device: str = "auto") -> list[RunCost]:
    """The cost of training per arm and setting. One step of the baseline in each setting is timed on the device.

    The other arms' times follow from their operations; at equal time all have the same. A public teacher is counted as
    one of the student's shape. Evaluations are not included.
    """
    at, arms = study.scales[scale], study.arms_at(scale)
    base = next(arm for arm in arms if arm.name == study.baseline)
    costs = []
    for setting in at.settings:
        counted = {arm.name: flops_and_epochs(arm, at, setting) for arm in arms}
        base_flops, step = counted[base.name][0], 0.0
        if at.minutes is None:
            step = _seconds_per_image(build(base, at, setting), base_flops, device)
        for name, (per_image, epochs) in counted.items():
            images = num_images(setting) * epochs
            total = images * per_image
            seconds = total / base_flops * step if at.minutes is None else 60 * at.minutes
            costs.append(RunCost(name, setting.name, len(at.seeds), images, total, seconds))
    return costs


def flops_and_epochs(arm: Arm, at: Scale, setting: Setting) -> tuple[float, float]:
    """An arm's operations per image, forward and backward, as the mean over its stages; and its epochs."""
    with torch.device("meta"):
        recipe = build(arm, at, setting)
        modalities, size = recipe.encoder.modalities, recipe.view.image_size
        total = sum(stage.epochs * flops(stage.build(), modalities, size) for stage in recipe.stages)
    return total / recipe.epochs, recipe.epochs


def build(arm: Arm, at: Scale, setting: Setting, teacher_as_given: bool = False) -> Recipe:
    """An arm's recipe in a setting, for what needs no data.

    An untrained teacher of the student's shape replaces other arms' runs and public models, and a teacher file unless
    `teacher_as_given`.
    """
    load = load_recipe(arm.recipe)
    given = settled(arm, at, setting)
    options = {name: value for name, value in given.items() if name not in OF_PRETRAIN}
    teacher = options.get("teacher", arm.recipe in ("cmtmae", "milan"))  # their default is a public model
    if teacher and not (teacher_as_given and isinstance(teacher, str) and Path(teacher).exists()):
        options["teacher"] = "random"
    modalities = default_modalities(load)
    if modalities and "modalities" in given:
        modalities = tuple(BUILT_IN[name].modality for name in given["modalities"])
    return build_recipe(load, modalities or (RGB,), options)


def num_images(setting: Setting) -> int:
    """How many images a run learns from in a setting. Raises ValueError where neither data nor their number is set."""
    if setting.data is None and setting.images is not None:
        return setting.images
    return len(open_source(images_of(setting)))


def _seconds_per_image(recipe: Recipe, per_image: float, device: str) -> float:
    where = choose_device(device)
    wanted = round(_MEASURED_FLOPS.get(where.type, _MEASURED_FLOPS["cpu"]) / per_image)
    batch = min(max(_MIN_IMAGES, min(_MAX_IMAGES, wanted)), recipe.optim.batch_size)
    settings = Settings(str(where), choose_precision("auto", where), batch, False, 1.0, 1.0)
    return measure_step(recipe, settings, batch, recipe.encoder.modalities) / batch


def with_minutes(study: Study, scale: ScaleName, minutes: float | None) -> Study:
    """The study with this training time for every run, where one is given.

    Raises ValueError for a time of 0 or less, and for a scale of several settings, each of which has its own epochs.
    """
    at = study.scales[scale]
    minutes = at.minutes if minutes is None else minutes
    if minutes is None:
        return study
    if not minutes > 0:
        raise ValueError(f"--minutes {minutes}: a time above 0 is needed")
    if len(at.settings) > 1:
        named = ", ".join(setting.name for setting in at.settings)
        raise ValueError(f"equal time is for a scale of one setting; this one has {len(at.settings)}: {named}")
    return replace(study, scales={**study.scales, scale: replace(at, minutes=minutes)})


def fit_epochs(study: Study, scale: ScaleName, folder: Path, device: str) -> Epochs:
    """How many epochs each arm trains in the scale's minutes: those stored in the folder, else timed now.

    Raises ValueError where the folder's runs have another training time.
    """
    at = study.scales[scale]
    assert at.minutes is not None
    stored = read_epochs(folder, at)
    missing = [arm for arm in study.arms_at(scale) if arm.name not in stored]
    if missing:
        log(f"timing a step of {len(missing)} arm{'s' * (len(missing) > 1)} ...")
    steps = {arm.name: _TimedStep(arm, at, at.settings[0], device) for arm in missing}
    for _ in range(_ROUNDS):
        for step in steps.values():
            step.time_again()
    return {**stored, **{name: step.epochs_in(at.minutes) for name, step in steps.items()}}


def with_epochs(study: Study, epochs: Epochs) -> Study:
    """The study with these epochs for its arms."""
    lengths = {arm.name: {"epochs": epochs[arm.name]} for arm in study.arms if arm.name in epochs}
    arms = (replace(arm, options={**arm.options, **lengths.get(arm.name, {})}) for arm in study.arms)
    return replace(study, arms=tuple(arms))


def store_epochs(epochs: Epochs, at: Scale, folder: Path) -> Epochs:
    """Store the epochs of arms that the folder has none of; returns all that it then holds."""
    while True:
        with hold(folder / "locks" / "epochs") as other:
            if other is None:
                merged = {**epochs, **read_epochs(folder, at)}
                write_json(folder / FILE, {"minutes": at.minutes, "epochs": merged})
                return merged
        time.sleep(_WAIT)


def read_epochs(folder: Path, at: Scale) -> Epochs:
    """The epochs stored in a folder; empty where there are none. Raises ValueError for those of another time."""
    if not (folder / FILE).exists():
        return {}
    stored = json.loads((folder / FILE).read_text())
    if stored["minutes"] != at.minutes:
        raise ValueError(
            f"the runs in {folder} train for {stored['minutes']:g} minutes each, not {at.minutes:g}; give another --out"
        )
    return {name: float(number) for name, number in stored["epochs"].items()}


class _TimedStep:
    """An arm's training step, and the minimum of its measured seconds per image."""

    def __init__(self, arm: Arm, at: Scale, setting: Setting, device: str):
        options = settled(arm, at, setting)
        options = {n: v for n, v in options.items() if n in OF_PRETRAIN and n not in ("paper", "minutes")}
        config = PretrainConfig(arm.recipe, **options)
        self.recipe = build(arm, at, setting, teacher_as_given=True)
        self.num_train = num_images(setting) * (1 - config.held_out_share)
        modalities = self.recipe.encoder.modalities
        self.settings, self.seconds = tune_step(config, self.recipe, modalities, choose_device(device))

    def time_again(self) -> None:
        """Other programs make a step slower, never faster, so the minimum counts. A compiled step is timed once."""
        if not self.settings.compile:
            batch, modalities = self.recipe.optim.batch_size, self.recipe.encoder.modalities
            self.seconds = min(self.seconds, measure_step(self.recipe, self.settings, batch, modalities) / batch)

    def epochs_in(self, minutes: float) -> float:
        """The epochs that fit, to three figures."""
        return float(f"{60 * minutes / (self.seconds * self.num_train):.3g}")
