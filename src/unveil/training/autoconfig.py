"""Fitting a recipe to the data and the machine: what the command changes from the paper's defaults, and why.

A paper's defaults are for a million images and a cluster. Where a dial is not given, the plan takes what trains well on
this many images of this size, within the time there is; each change is told with its reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from ..data.inspect_aligned import AlignedInspection
from ..data.inspect_images import Inspection
from ..data.loader import Loader
from ..modeling.encoder import SIZES
from ..modeling.masked_model import MaskedModel
from ..modeling.optim import Optim
from ..modeling.rng import sample_keys
from ..modeling.types import Batch, Modality
from ..recipes.recipe import Recipe
from ..recipes.registry import defaults_of
from ..runs.console import log
from ..runs.hardware import choose_precision, memory_total
from .config import PretrainConfig
from .loop import Settings, Trainer

MINUTES = {"cpu": 10.0, "mps": 30.0, "cuda": 120.0}  # of training when the user gives neither epochs nor minutes
MAX_EPOCHS = 800  # as long as the papers train
UPDATES = 6000  # that a run should have: below it, batches of half the size learn more from the same images
MIN_BATCH, MAX_BATCH = 16, 4096
SHORT_RUN_LR = 1e-3  # peak of a tiny ViT at batches of 32 and more, less below; docs/results.md has the sweep
AVERAGE_TRAILS = 0.05  # of a run's updates, at most, that an average of the student trails behind it
SHORT_RUN, SHORT_RUN_CROP = 50, 0.6  # epochs below which views show more of an image, and how much at least
LOOKS, LOOK_SECONDS = 10, 15.0  # at held-out images in a run, and the least training between two of them
_REHEARSED, _REHEARSAL = 8, 2.0  # updates of a rehearsal at most, and the seconds after which it is long enough
_LONG = 5.0  # seconds of an update that need not be measured again
_IMAGE_SIZES = ((40, 32, 4), (96, 64, 8), (160, 128, 16), (math.inf, 224, 16))  # median side up to -> size, patch


@dataclass(frozen=True)
class Change:
    """A dial that the plan set."""

    dial: str
    paper: Any
    used: Any
    why: str


class AutoConfig:
    """Dials as they are settled, one after another; those that the user gave are never touched."""

    def __init__(self, recipe: Callable[..., Recipe], given: Mapping[str, Any]):
        self.defaults = defaults_of(recipe)
        self.given = dict(given)
        self.dials = {**self.defaults, **given}
        self.changes: list[Change] = []

    def set(self, dial: str, value: Any, why: str) -> None:
        """Set a dial that the recipe has and the user left open."""
        if dial in self.defaults and dial not in self.given and self.dials[dial] != value:
            self.changes = [c for c in self.changes if c.dial != dial]
            self.dials[dial] = value
            if value != self.defaults[dial]:
                self.changes.append(Change(dial, self.defaults[dial], value, why))

    def hold(self, dial: str, value: Any, why: str) -> None:
        """Set a dial that the user left open, and let nothing that comes later change it."""
        self.set(dial, value, why)
        if dial in self.defaults:
            self.given[dial] = self.dials[dial]


def configure_shape(
    plan: AutoConfig, data: Inspection | AlignedInspection, num_train: int, device: torch.device
) -> None:
    """Size of image, patch and model: before anything is built."""
    height, width = data.median or (224, 224)
    side = min(height, width)
    image_size = next(size for limit, size, _ in _IMAGE_SIZES if side <= limit)
    why = f"the images are {width} x {height} pixels in the middle"
    patch = max(1, plan.given.get("patch", 1))
    image_size = max(patch, image_size // patch * patch)
    plan.set("image_size", (image_size,), why)
    taken = plan.dials.get("image_size", (image_size,))
    if "patch" in plan.defaults and "patch" not in plan.given:
        fitting = next(p for limit, _, p in _IMAGE_SIZES if min(taken) <= limit)
        if all(s % fitting == 0 for s in taken):
            plan.set("patch", fitting, f"{taken[0] // fitting} x {taken[-1] // fitting} patches in an image")
    if plan.dials.get("mask_unit") and plan.dials["mask_unit"] % max(1, plan.dials.get("patch", 1)) == 0:
        unit = 2 * plan.dials["patch"]
        plan.set("mask_unit", unit, "two patches, as in the paper")
    if device.type != "cuda":
        plan.set("size", "tiny", "a processor trains a tiny ViT in minutes; --size base takes a GPU")
    elif num_train < 20_000:
        plan.set("size", "small", f"{num_train:,} images are few for a larger model")
    _fit_decoder(plan)


def _fit_decoder(plan: AutoConfig) -> None:
    narrow = {"nano": (96, 2, 3), "tiny": (128, 4, 4), "small": (256, 8, 8)}.get(str(plan.dials.get("size")))
    if narrow:
        why = "in proportion to the encoder"
        for dial, value in zip(("decoder_dim", "decoder_depth", "decoder_heads"), narrow, strict=True):
            if plan.defaults.get(dial, 0) > value:
                plan.set(dial, value, why)


def configure_schedule(plan: AutoConfig, num_train: int, image_seconds: float, minutes: float) -> None:
    """Epochs that fit the time, a batch that leaves enough updates, and a rate for a run of that length."""
    epochs = min(MAX_EPOCHS, minutes * 60 / max(1e-9, num_train * image_seconds))
    epochs = round(epochs) if epochs >= 10 else max(0.01, round(epochs, 2))
    plan.set("epochs", epochs, f"fits {minutes:g} minutes here; --epochs or --minutes say otherwise")
    length = plan.dials.get("epochs", epochs)
    images = length * num_train
    paper = plan.defaults.get("batch_size", MAX_BATCH)
    wanted = 2 ** round(math.log2(max(1.0, images / UPDATES)))
    batch = max(1, min(max(MIN_BATCH, wanted), paper, num_train))
    plan.set("batch_size", batch, f"{images:,.0f} views make {images // batch:,.0f} updates; few updates learn little")
    if length < SHORT_RUN and plan.defaults.get("crop_scale", 1.0) < SHORT_RUN_CROP:
        plan.set("crop_scale", SHORT_RUN_CROP, f"{length:g} epochs are too few to know an image by its corners")
    share = 0.05 if length >= 100 else 0.1
    plan.set("warmup_epochs", round(share * length, 4), f"{share:.0%} of the run")
    batch = plan.dials.get("batch_size", batch)
    _fit_momentum(plan, images / batch)
    width = SIZES.get(str(plan.dials.get("size")), SIZES["base"])[0]
    floor = SHORT_RUN_LR * math.sqrt(192 / width) * min(1.0, batch / 32)
    scaled = plan.defaults.get("lr", 0.0) * batch / 256
    if "lr" in plan.defaults and scaled < floor:
        peak = f"a peak of {floor:.1e}, for a short run with small batches"
        plan.set("lr", float(f"{floor * 256 / batch:.3g}"), peak)
        plan.set("lr_scale", "none", "the peak is for this run as it stands")


def _fit_momentum(plan: AutoConfig, updates: float) -> None:
    """An average that still is what it began as, when the run ends, teaches the student what an untrained one knows."""
    trails = max(1.0, AVERAGE_TRAILS * updates)
    if plan.defaults.get("momentum", 0.0) > 1 - 1 / trails and _follows(plan.dials):
        value = float(f"{1 - 1 / trails:.3g}")
        plan.set("momentum", value, f"an average that trails by {trails:.0f} of {updates:,.0f} updates")


def _follows(dials: Mapping[str, Any]) -> bool:
    """Whether an average of the student guides or is predicted."""
    if "student" in dials:
        return bool(dials["student"] == "momentum")
    return bool(dials.get("teacher", "student") == "student")


def tune_step(
    asked: PretrainConfig, built: Recipe, modalities: Sequence[Modality], device: torch.device, processes: int = 1
) -> tuple[Settings, float]:
    """Settings that work, and the seconds that an image of an update takes.

    On a GPU that is the largest micro-batch that fits; where compilation fails, there is none.
    """
    batch = max(1, built.optim.batch_size // processes)
    settings = Settings(
        str(device),
        choose_precision(asked.precision, device),
        min(batch, asked.micro_batch or first_micro_batch(built, batch, device)),
        compile=asked.compile == "on" or (asked.compile == "auto" and device.type == "cuda"),
        save_minutes=asked.save_minutes,
        signals_every=1.0,
    )
    while True:
        try:
            return settings, measure_step(built, settings, batch, modalities) / (batch * processes)
        except torch.OutOfMemoryError:
            if asked.micro_batch or settings.micro_batch == 1:
                raise
            torch.cuda.empty_cache()
            settings = replace(settings, micro_batch=settings.micro_batch // 2)
        except Exception as error:  # a compiler fails in many ways; a fault that is none of its own comes again
            if not settings.compile:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log(f"note: torch.compile does not work here ({reason}); training goes on without it")
            settings = replace(settings, compile=False)


def time_with_data(recipe: Recipe, settings: Settings, loader: Loader, alone: float) -> float:
    """Seconds that an image of a run takes: updates on its own views, beside the threads that make them.

    `alone` is what an image takes where nothing has to be read. On a processor the two share the cores, and a small
    batch takes longer for each image, so both are tried together. A GPU, or a compiled step, leaves the cores to the
    threads: the slower of the two decides.
    """
    with closing(_endless(loader)) as batches:
        if settings.compile or settings.device != "cpu":
            return max(alone, _mean_seconds(lambda: next(batches)) / loader.batch_size)
        seconds = 0.0
        for stage in recipe.stages:
            trainer = Trainer(stage.build(), Optim(batch_size=loader.batch_size), settings)
            seconds += stage.epochs * _mean_seconds(lambda t=trainer: t.update(next(batches), 0.0))  # type: ignore[misc]
    return seconds / recipe.epochs / loader.batch_size


def _endless(loader: Loader) -> Generator[Batch]:
    for epoch in count():
        with closing(cast("Generator[Batch]", loader.batches(epoch))) as batches:
            yield from batches


def _mean_seconds(act: Callable[[], object]) -> float:
    """Seconds of an act, after one that does not count, unless that took long enough."""
    began = time.perf_counter()
    act()
    if (first := time.perf_counter() - began) > _REHEARSAL:
        return first
    began, done = time.perf_counter(), 0
    while done < _REHEARSED and time.perf_counter() - began < _REHEARSAL:
        act()
        done += 1
    return (time.perf_counter() - began) / done


def validation_interval(epochs: float, epoch_seconds: float) -> float:
    """Epochs between two looks at held-out images: a short run has fewer, for each takes a second or so."""
    return max(epochs / LOOKS, min(epochs, LOOK_SECONDS / max(1e-9, epoch_seconds)))


def measure_step(recipe: Recipe, settings: Settings, batch_size: int, modalities: Sequence[Modality]) -> float:
    """Seconds of one update on random maps, over the stages as they are long.

    On a GPU that runs out of memory the error passes on: the caller takes a smaller micro-batch.
    """
    size = min(batch_size, settings.micro_batch)
    maps = {m.name: _random_map(m, size, recipe.view.image_size) for m in modalities}
    batch = Batch(maps, sample_keys(0, 0, range(size)), torch.zeros(()))
    seconds = [stage.epochs * _measure(stage.build(), settings, batch) for stage in recipe.stages]
    return sum(seconds) / recipe.epochs * batch_size / size


def _measure(model: MaskedModel, settings: Settings, batch: Batch) -> float:
    """Seconds of one update: the median of three after one that does not count."""
    trainer = Trainer(model, Optim(batch_size=len(batch)), settings)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        trainer.update(batch, 0.0)
        if settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if seconds[0] > _LONG and not settings.compile:
            return seconds[0]
    return sorted(seconds[1:])[1]


def _random_map(modality: Modality, count: int, size: tuple[int, int]) -> Tensor:
    shape = (count, modality.channels, size[0] // modality.stride, size[1] // modality.stride)
    if modality.kind == "categorical":
        return torch.randint(modality.num_classes, shape)
    return torch.rand(shape)


def first_micro_batch(recipe: Recipe, batch_size: int, device: torch.device) -> int:
    """A micro-batch to try first, from the bytes that one image's activations take."""
    tokens = recipe.encoder.grid[0] * recipe.encoder.grid[1] * len(recipe.encoder.modalities)
    per_image = 4 * 60 * recipe.encoder.depth * recipe.encoder.dim * tokens / 2**20  # MB, an upper estimate
    share = 0.8 if device.type == "cuda" else 0.4
    limit = 128 if device.type == "cpu" else 2048
    return max(1, min(batch_size, limit, int(share * memory_total(device) / per_image)))
