"""Automatic configuration: the options that differ from the paper's defaults because of the data and the machine.

A paper's defaults are for a million images and a cluster. Options that are not given are set to what trains well on
this many images of this size within the time; each change is printed with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.inspection import AlignedInspection, Inspection
from ..modeling.encoder import SIZES
from ..recipes.recipe import Recipe
from ..recipes.registry import defaults_of
from ..runs.console import duration

MINUTES = {"cpu": 10.0, "mps": 30.0, "cuda": 120.0}  # of training when the user gives neither epochs nor minutes
MAX_EPOCHS = 800  # as long as the papers train
UPDATES = 10_000  # that a run should have: below it, batches of half the size learn more from the same images
FEWEST_UPDATES = 1000  # that a run keeps where larger batches, being faster, show it more images
MIN_BATCH, MAX_BATCH = 16, 4096
CPU_BATCH = 128  # at most on a CPU, unless larger ones are measured to be faster: they leave a run fewer updates
FEW_BATCHES = 8  # in an epoch, below which all have the size that leaves the fewest images out
SMALL_VIT_MINUTES = 60.0  # of training on a CPU up to which a ViT nano is taken; docs/results.md has what it learns
SHORT_RUN_LR = 1e-3  # peak of a tiny ViT at batches of 32 and more, less below; docs/results.md has the sweep
EMA_SHARE = 0.05  # of a run's updates: the longest time constant of an average of the student
EMA_TARGETS = ("data2vec", "student", "collaborative")  # what is predicted from an average of the student
SHORT_RUN, SHORT_RUN_CROP = 50, 0.6  # epochs below which crops show more of an image, and how much at least
VALIDATIONS, VALIDATION_SECONDS = 10, 15.0  # in a run, and the least training between two of them
RELEASED = {"weight_decay_on": "all", "qkv_init": "separate"}  # as MultiMAE's published model, a ViT-B, was trained
MAE_DECODER_DIM = 512  # the width of the decoder of ViT-B and larger
NARROW_DECODERS = {  # of small encoders, where a paper's decoder would be most of the model
    size: dict(zip(("decoder_dim", "decoder_depth", "decoder_heads"), shape, strict=True))
    for size, shape in {"nano": (96, 2, 3), "tiny": (128, 4, 4), "small": (256, 8, 8)}.items()
}
_IMAGE_SIZES = ((40, 32, 4), (96, 64, 8), (160, 128, 16), (math.inf, 224, 16))  # median side up to -> size, patch


@dataclass(frozen=True)
class Change:
    """An option that was set automatically, as `run.json` stores it."""

    option: str
    paper: Any
    used: Any
    why: str


class AutoConfig:
    """A recipe's options while they are set one after another; those that the user gave never change.

    With `paper` the defaults of a published model are those that it was trained with.
    """

    def __init__(self, recipe: Callable[..., Recipe], given: Mapping[str, Any], paper: bool = False):
        self.defaults = defaults_of(recipe)
        if paper and given.get("size", "base") == "base":
            self.defaults |= {name: value for name, value in RELEASED.items() if name in self.defaults}
        self.given = dict(given)
        self.options = {**self.defaults, **given}
        self.changes: list[Change] = []

    def set(self, option: str, value: Any, why: str) -> None:
        """Set an option that the recipe has and the user did not give."""
        if option in self.defaults and option not in self.given and self.options[option] != value:
            self.changes = [c for c in self.changes if c.option != option]
            self.options[option] = value
            if value != self.defaults[option]:
                self.changes.append(Change(option, self.defaults[option], value, why))

    def fix(self, option: str, value: Any, why: str) -> None:
        """Set an option that the user did not give, so that nothing sets it again."""
        self.set(option, value, why)
        if option in self.defaults:
            self.given[option] = self.options[option]

    def limit_batch(self, num_train: int) -> None:
        """Cut the batch, given or not, to the number of images."""
        batch = self.options.get("batch_size", 0)
        if batch > num_train:
            self.options["batch_size"] = num_train
            self.changes.append(Change("batch_size", batch, num_train, "there are no more images"))


def configure_shape(
    auto: AutoConfig,
    data: Inspection | AlignedInspection,
    num_train: int,
    device: torch.device,
    budget: float | None = None,
    least_side: int = 0,
) -> None:
    """Set image size, patch and model size by the images, the device and the budget in seconds, where there is one.

    `least_side` is the smallest image size in pixels that is chosen.
    """
    height, width = data.median or (224, 224)
    side = min(height, width)
    image_size = max(least_side, next(size for limit, size, _ in _IMAGE_SIZES if side <= limit))
    patch = max(1, auto.given.get("patch", 1))
    image_size = max(patch, image_size // patch * patch)
    auto.set("image_size", (image_size,), f"the median image has {width} x {height} pixels")
    sides = auto.options.get("image_size", (image_size,))
    if "patch" in auto.defaults and "patch" not in auto.given:
        patch = next(p for limit, _, p in _IMAGE_SIZES if min(sides) <= limit)
        if all(s % patch == 0 for s in sides):
            auto.set("patch", patch, f"{sides[0] // patch} x {sides[-1] // patch} patches in an image")
    if auto.options.get("mask_unit") and auto.options["mask_unit"] % max(1, auto.options.get("patch", 1)) == 0:
        auto.set("mask_unit", 2 * auto.options["patch"], "two patches, as in the paper")
    if device.type != "cuda" and budget is not None and budget <= 60 * SMALL_VIT_MINUTES:
        auto.set("size", "nano", f"it learns more than a larger ViT in {duration(budget)} without a GPU")
    elif device.type != "cuda":
        auto.set("size", "tiny", "a CPU trains a tiny ViT in hours; --size base needs a GPU")
    elif num_train < 20_000:
        auto.set("size", "small", f"{num_train:,} images are few for a larger model")
    _configure_decoder(auto)


def _configure_decoder(auto: AutoConfig) -> None:
    for option, value in NARROW_DECODERS.get(str(auto.options.get("size")), {}).items():
        if auto.defaults.get(option, 0) > value:
            auto.set(option, value, "in proportion to the encoder")


def configure_size(auto: AutoConfig) -> None:
    """Set what a size has of its own in the papers, in recipes with MAE's decoder: CrossMAE's ViT-S decodes with a
    width of 256 and 8 heads, and ViT-H reads patches of 14 pixels (MAE, CrossMAE).
    """
    if auto.defaults.get("decoder_dim") != MAE_DECODER_DIM:
        return
    if auto.options["size"] == "small":
        auto.set("decoder_dim", 256, "that of the published ViT-S")
        auto.set("decoder_heads", 8, "those of the published ViT-S")
    fits = all(side % 14 == 0 for side in auto.options["image_size"])
    if auto.options["size"] == "huge" and auto.options["patch"] == 16 and fits:
        auto.set("patch", 14, "that of the published ViT-H")


def largest_batch(auto: AutoConfig, images: float, num_train: int) -> int:
    """The largest batch to try for speed, in a run of so many images.

    0 where the batch is given, or the epochs: then the options are the same on every machine.
    """
    if {"batch_size", "epochs"} & auto.given.keys() or "batch_size" not in auto.defaults:
        return 0
    return int(min(images / FEWEST_UPDATES, auto.defaults["batch_size"], num_train))


def configure_schedule(
    auto: AutoConfig,
    num_train: int,
    image_seconds: float,
    minutes: float,
    fast_batch: int = 1,
    device: str = "cpu",
) -> None:
    """Set epochs that fit the time, a batch that leaves enough updates, and a learning rate for both.

    `fast_batch` is the one that was measured to be fastest, of those that leave enough updates.
    """
    epochs = min(MAX_EPOCHS, minutes * 60 / max(1e-9, num_train * image_seconds))
    epochs = round(epochs) if epochs >= 10 else max(0.01, round(epochs, 2))
    auto.set("epochs", epochs, f"fits {duration(60 * minutes)} on this machine; change it with --epochs or --minutes")
    length = auto.options.get("epochs", epochs)
    images = length * num_train
    paper = auto.defaults.get("batch_size", MAX_BATCH)
    batch = 2 ** round(math.log2(max(1.0, images / UPDATES)))
    most = CPU_BATCH if device == "cpu" else MAX_BATCH
    batch = max(1, min(max(MIN_BATCH, min(batch, most), fast_batch), paper, num_train))
    speed = f", {1 / image_seconds:,.0f} a second" if batch == fast_batch else ""
    per_epoch = num_train // batch
    if per_epoch < FEW_BATCHES:  # what an epoch has beyond its last whole batch is left out of it
        batch = min(num_train // per_epoch, paper)
    updates = max(1, round(length * (num_train // batch)))
    auto.set("batch_size", batch, f"{updates * batch:,} images in {updates:,} updates{speed}")
    if length < SHORT_RUN and auto.defaults.get("crop_scale", 1.0) < SHORT_RUN_CROP:
        auto.set("crop_scale", SHORT_RUN_CROP, f"small crops need more than {SHORT_RUN} epochs")
    share = 0.05 if length >= 100 else 0.1
    auto.set("warmup_epochs", round(share * length, 4), f"{share:.0%} of the run")
    batch = auto.options.get("batch_size", batch)
    _configure_momentum(auto, images / batch)
    width = SIZES.get(str(auto.options.get("size")), SIZES["base"])[0]
    peak = SHORT_RUN_LR * math.sqrt(192 / width) * min(1.0, batch / 32)
    if "lr" in auto.defaults and auto.defaults["lr"] * batch / 256 < peak:
        auto.set("lr", float(f"{peak * 256 / batch:.3g}"), "a short run with small batches needs a higher rate")
        auto.set("lr_scale", "none", "the rate is set for this run")


def _configure_momentum(auto: AutoConfig, updates: float) -> None:
    """Shorten an average of the student that would still hold its initial weights when the run ends."""
    guide, average = ("student", "momentum") if "student" in auto.options else ("teacher", "student")
    constant = max(1.0, EMA_SHARE * updates)
    is_average = auto.options.get(guide, average) == average or auto.options.get("target") in EMA_TARGETS
    if is_average and auto.defaults.get("momentum", 0.0) > 1 - 1 / constant:
        value = float(f"{1 - 1 / constant:.3g}")
        auto.set("momentum", value, f"an average over about {constant:.0f} of {updates:,.0f} updates")


def validation_interval(epochs: float, epoch_seconds: float) -> float:
    """Epochs between two validations: a tenth of the run, more in a short one, as each takes a second or so."""
    return max(epochs / VALIDATIONS, min(epochs, VALIDATION_SECONDS / max(1e-9, epoch_seconds)))
