"""Settings of detection: the published recipe of ViTDet, and one for short runs on few images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ..finetuning import TrainingSettings
from .model import Heads

PresetName = Literal["auto", "vitdet", "small"]
WARMUP_FACTOR = 1e-3  # of the rate, at the first update
UPDATES, MOST_EPOCHS = 1500, 100  # of `small`
FEW = 20_000  # images, below which `auto` is `small`


@dataclass(frozen=True)
class DetectionTraining(TrainingSettings):
    """Settings of a detector's training; `lr` is the rate itself, whatever the batch.

    It rises in a line over `warmup_updates`, and falls to a tenth after each share of the updates in `steps`. Views are
    squares of `image_size` pixels (None: of the encoder's own size), at scales from `scales`. Windows have `window`
    tokens a side. `ema` is the decay of the average of the weights that is judged; 0 judges the last ones.
    """

    image_size: int | None = None
    scales: tuple[float, float] = (0.1, 2.0)
    window: int = 14
    warmup_updates: int = 250
    steps: tuple[float, float] = (0.889, 0.963)
    ema: float = 0.0
    heads: Heads = field(default_factory=Heads)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales are two numbers above 0, the lower first; got {self.scales}")
        if self.window < 1:
            raise ValueError(f"window is a number of tokens of at least 1; got {self.window}")

    def rate(self, epoch: float, steps_per_epoch: int) -> float:
        """The learning rate at a point of training, counted in epochs of so many updates."""
        update = epoch * steps_per_epoch
        warmup = min(self.warmup_updates, self.epochs * steps_per_epoch // 4)
        rising = min(1.0, WARMUP_FACTOR + (1 - WARMUP_FACTOR) * update / warmup) if warmup else 1.0
        falling: float = 0.1 ** sum(epoch / self.epochs >= share for share in self.steps)
        return self.lr * rising * falling

    @property
    def facts(self) -> dict[str, object]:
        """The settings by name, those of the heads among them."""
        own = asdict(self)
        return {**{name: value for name, value in own.items() if name != "heads"}, **own["heads"]}


def preset(name: PresetName, num_images: int, dim: int, given: Mapping[str, Any], cascade: bool) -> DetectionTraining:
    """The settings of a preset for an encoder of a width, with what the user gave.

    `vitdet` is Li et al., 2022, appendix A.2: 100 epochs are 184,375 updates of COCO. `small` makes about 1500 updates.
    """
    is_large = dim >= 1024
    if name == "vitdet":
        settings = DetectionTraining(
            100, 64, 1e-4, 0, 0.1, 0.8 if is_large else 0.7, 0.4 if is_large else 0.1, image_size=1024
        )
    else:
        batch_size = given.get("batch_size") or min(16, max(1, num_images // 4))
        epochs = max(1, min(MOST_EPOCHS, round(UPDATES * batch_size / num_images)))
        heads = Heads(64, 256, anchors=64, rois=64, candidates=(300, 300), proposals=(150, 150))
        settings = DetectionTraining(
            epochs, batch_size, 1e-3, 0, 0.05, 0.75, 0.0, scales=(0.7, 1.4), warmup_updates=100, heads=heads
        )
    own = {option: value for option, value in given.items() if value is not None}
    settings = replace(settings, **own)
    return replace(
        settings,
        batch_size=min(settings.batch_size, num_images),
        heads=replace(settings.heads, cascade=cascade),
    )
