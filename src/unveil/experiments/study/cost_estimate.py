"""What a study will cost, before it begins: operations counted on paper, and time from one measured step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...data.modality_config import BUILT_IN
from ...data.sources import open_source
from ...modeling.types import RGB, Modality
from ...recipes.recipe import Recipe
from ...recipes.registry import build_recipe, default_modalities, load_recipe
from ...runs.hardware import choose_device, choose_precision
from ...training.run_metadata import flops
from ...training.timing import measure_step
from ...training.trainer import Settings
from .design import Arm, Scale, ScaleName, Setting, Study
from .jobs import OF_PRETRAIN, settled

_TRIED = {"cpu": 5e9, "cuda": 5e12}  # operations of the measured step, about: small enough to wait for
_MOST, _FEWEST = 256, 2  # images in it


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

    The other arms' times follow from their operations, and at equal time all have the same. What a public teacher costs
    is that of one of the student's shape. Evaluations come on top.
    """
    at = study.scales[scale]
    found = []
    for setting in at.settings:
        arms = study.arms_at(scale)
        found_of = {arm.name: flops_and_epochs(arm, at, setting) for arm in arms}
        base = next(arm for arm in arms if arm.name == study.baseline)
        step = 0.0
        if at.minutes is None:
            step = _seconds_per_image(build(base, at, setting), found_of[base.name][0], device)
        for arm in arms:
            per_image, epochs = found_of[arm.name]
            images = num_images(setting) * epochs
            total = images * per_image
            seconds = total / found_of[base.name][0] * step if at.minutes is None else 60 * at.minutes
            found.append(RunCost(arm.name, setting.name, len(at.seeds), images, total, seconds))
    return found


def flops_and_epochs(arm: Arm, at: Scale, setting: Setting) -> tuple[float, float]:
    """An arm's operations per image, and its epochs: counted on shapes alone."""
    with torch.device("meta"):
        recipe = build(arm, at, setting)
        return flops_per_image(recipe), recipe.epochs


def build(arm: Arm, at: Scale, setting: Setting, teacher_as_given: bool = False) -> Recipe:
    """An arm's recipe as it is in a setting, for what needs no data.

    A teacher of the student's shape stands for other arms' runs and public models, and, unless it is taken
    `as_given`, for a file, too.
    """
    load = load_recipe(arm.recipe)
    dials = {n: v for n, v in settled(arm, at, setting).items() if n not in OF_PRETRAIN}
    teacher = dials.get("teacher", arm.recipe in ("cmtmae", "milan"))  # their default is a public model
    if teacher and not (teacher_as_given and isinstance(teacher, str) and Path(teacher).exists()):
        dials["teacher"] = "random"
    return build_recipe(load, arm_modalities(arm, at, setting), dials)


def arm_modalities(arm: Arm, at: Scale, setting: Setting) -> tuple[Modality, ...]:
    """The modalities that the recipe of an arm is built with."""
    several = default_modalities(load_recipe(arm.recipe))
    if several is None:
        return (RGB,)
    named = settled(arm, at, setting).get("modalities")
    return tuple(BUILT_IN[name].modality for name in named) if named else several


def flops_per_image(recipe: Recipe) -> float:
    """Operations of a forward and a backward pass on one image, over the stages as they are long, on no data."""
    modalities, size = recipe.encoder.modalities, recipe.view.image_size
    return sum(stage.epochs * flops(stage.build(), modalities, size) for stage in recipe.stages) / recipe.epochs


def num_images(setting: Setting) -> int:
    """How many images a run learns from in a setting. Raises ValueError where nobody says."""
    if setting.data is not None:
        return len(open_source(setting.data))
    if setting.images is None:
        raise ValueError(f"setting {setting.name} has no images; give --data {setting.name}=FOLDER")
    return setting.images


def _seconds_per_image(recipe: Recipe, per_image: float, device: str) -> float:
    """The time of a training step on a device, per image."""
    where = choose_device(device)
    wanted = round(_TRIED.get(where.type, _TRIED["cpu"]) / per_image)
    batch = min(max(_FEWEST, min(_MOST, wanted)), recipe.optim.batch_size)
    settings = Settings(str(where), choose_precision("auto", where), batch, False, 1.0, 1.0)
    return measure_step(recipe, settings, batch, recipe.encoder.modalities) / batch
