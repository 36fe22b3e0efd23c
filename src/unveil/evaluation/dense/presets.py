"""Settings of dense fine-tuning and probes: their values, the learning rate that follows, and how they fit a set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...modeling.optim import warmup_cosine
from ..finetuning import TrainingSettings
from .data import Fit
from .heads import HeadName

PresetName = Literal[
    "auto", "probe", "small", "mae", "mae-ade20k", "multimae-ade20k", "multimae-hypersim", "multimae-nyuv2"
]
FIRST_RATE = 1e-6  # of the peak, at the first update of a warm-up that is counted in updates


@dataclass(frozen=True)
class DenseTraining(TrainingSettings):
    """Settings of a dense fine-tuning or probe; `lr` is the peak rate itself, whatever the batch.

    `image_size` is the side of a view, None the encoder's own size. `scales`, `fit` and `class_share` are those of
    `DenseView`; `jitter` is the share of views whose colours change, `distortion` the probability of each change of
    `distorted`. With `updates` the training ends after so many, and the rate falls in a line to 0, not by a cosine,
    after `warmup_updates`. `blocks` and `dropout` are those of `DenseModel`. None is off.
    """

    image_size: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    fit: Fit = "cover"
    jitter: float = 0.5
    updates: int | None = None
    warmup_updates: int | None = None
    class_share: float | None = None
    distortion: float | None = None
    blocks: tuple[int, int, int, int] | None = None
    dropout: float | None = None

    def rate(self, epoch: float, steps_per_epoch: int) -> float:
        """The learning rate at a point of training, counted in epochs of so many updates: a warm-up, then a decay.

        Both are those of mmengine's LinearLR and PolyLR where they are counted in updates.
        """
        if self.updates is None or self.warmup_updates is None:
            return self.lr * warmup_cosine(epoch, self.epochs, self.warmup_epochs)
        step, warmup = round(epoch * steps_per_epoch), self.warmup_updates
        if step < warmup:
            return self.lr * (FIRST_RATE + (1 - FIRST_RATE) * step / max(1, warmup - 1))
        return self.lr * max(0.0, 1 - (step - warmup) / max(1, self.updates - 1 - warmup))

    @property
    def facts(self) -> dict[str, object]:
        """The settings by name, without those that are off."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "image_size"}


@dataclass(frozen=True)
class DensePreset:
    """Settings by name, with their head, whether the encoder is frozen, and how many updates are made at most.

    `most_updates` of 0 is any number.
    """

    training: DenseTraining
    head: HeadName = "linear"
    frozen: bool = False
    most_updates: int = 0
    name: str = ""


PROBE = DensePreset(
    DenseTraining(100, lr=2e-3, warmup_epochs=10, layer_decay=1.0, drop_path=0.0), frozen=True, most_updates=1000
)
SMALL = DensePreset(DenseTraining(100, lr=3e-4, warmup_epochs=10), most_updates=2000)


def fitted(settings: DenseTraining, num_images: int, updates: int, given: Mapping[str, Any]) -> DenseTraining:
    """Settings that make about so many updates on a set, in at most their epochs, with what the user gave.

    Where epochs are given, the warm-up keeps its share of them. Settings that are counted in updates make those.
    """
    own = replace(settings, **given)
    own = replace(own, batch_size=min(own.batch_size, num_images))
    if settings.updates is not None and settings.warmup_updates is not None:
        steps = num_images // own.batch_size
        total = steps * own.epochs if "epochs" in given else settings.updates
        warmup = round(settings.warmup_updates * total / settings.updates)
        counted = replace(own, updates=total, warmup_updates=warmup, warmup_epochs=warmup / steps)
        return replace(counted, epochs=math.ceil(total / steps))
    epochs = own.epochs
    if updates and "epochs" not in given:
        epochs = max(1, min(epochs, round(updates * own.batch_size / num_images)))
    return replace(own, epochs=epochs, warmup_epochs=settings.warmup_epochs * epochs / settings.epochs)
