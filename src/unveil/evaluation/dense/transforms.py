"""Views of samples for dense protocols: one random box for all maps, padded; and windows that cover a whole image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...data.augment import colour
from ...data.samples import Sample
from ...data.transforms import Cut, view_of
from ...modeling.rng import SampleRng
from ...modeling.types import Batch, Modality

Fit = Literal["cover", "inside"]
STRIDE = 2 / 3  # of a window, from one to the next
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}


@dataclass(frozen=True)
class DenseView:
    """How views of `image_size` (height, width) are drawn: scaled, cut at random, and padded where the image is small.

    The scale is drawn evenly between `scales` and counts from the one at which the image just covers the view, or
    lies just inside it. Views are mirrored half of the time; `jitter` of them change their colours.
    """

    image_size: tuple[int, int]
    scales: tuple[float, float] = (0.5, 2.0)
    fit: Fit = "cover"
    jitter: float = 0.0

    def base(self, height: int, width: int) -> float:
        both = (self.image_size[0] / height, self.image_size[1] / width)
        return max(both) if self.fit == "cover" else min(both)

    def __call__(
        self, samples: Sequence[Sample], modalities: Sequence[Modality], keys: Int[Tensor, " B"]
    ) -> list[Sample]:
        """A random view of each sample, drawn by its key."""
        draws = SampleRng(keys).uniform("dense view", 4).tolist()
        return [self._view(sample, modalities, *numbers) for sample, numbers in zip(samples, draws, strict=True)]

    def _view(
        self, sample: Sample, modalities: Sequence[Modality], scale: float, down: float, right: float, mirror: float
    ) -> Sample:
        height, width = sample.size
        factor = self.base(height, width) * (self.scales[0] + scale * (self.scales[1] - self.scales[0]))
        tall, wide = (min(s, max(1, round(v / factor))) for s, v in zip((height, width), self.image_size, strict=True))
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        made = tuple(min(v, max(1, round(s * factor))) for s, v in zip((tall, wide), self.image_size, strict=True))
        cut = Cut(top, left, tall, wide, turned=False, mirrored=mirror < 0.5, upside_down=False)
        return padded(view_of(sample, cut, (made[0], made[1]), _full(modalities)), self.image_size, modalities)

    def whole(self, sample: Sample, modalities: Sequence[Modality]) -> tuple[Sample, tuple[int, int]]:
        """The whole image at scale 1, padded to the view at least, and how much of it is image."""
        height, width = sample.size
        factor = self.base(height, width)
        fitting = [round(side * factor) for side in (height, width)]
        bound = max if self.fit == "cover" else min
        made = (bound(self.image_size[0], max(1, fitting[0])), bound(self.image_size[1], max(1, fitting[1])))
        cut = Cut(0, 0, height, width, turned=False, mirrored=False, upside_down=False)
        size = (max(self.image_size[0], made[0]), max(self.image_size[1], made[1]))
        return padded(view_of(sample, cut, made, _full(modalities)), size, modalities), made


def _full(modalities: Sequence[Modality]) -> list[Modality]:
    """The modalities with a pixel for each pixel of the view: strides come last."""
    return [replace(m, stride=1) for m in modalities]


def padded(sample: Sample, size: tuple[int, int], modalities: Sequence[Modality]) -> Sample:
    """A sample filled up to a size, to the right and below, with what is not valid: pictures with their mean colour."""
    height, width = sample.size
    maps, valid = {}, {}
    for m in modalities:
        image, known = sample.maps[m.name], sample.valid.get(m.name)
        if (height, width) != size:
            made = image.new_zeros(image.shape[0], *size)
            if m.name not in sample.valid:
                mean = torch.tensor(m.mean) * (255 if image.dtype == torch.uint8 else 1)
                made += (mean.round() if image.dtype == torch.uint8 else mean).to(image.dtype)[:, None, None]
            made[:, :height, :width] = image
            there = torch.ones(1, height, width, dtype=torch.bool) if known is None else known
            image, known = made, F.pad(there, (0, size[1] - width, 0, size[0] - height))
        first = m.stride // 2
        maps[m.name] = image[:, first :: m.stride, first :: m.stride]
        valid[m.name] = None if known is None else known[:, first :: m.stride, first :: m.stride]
    return Sample(maps, valid)


def starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover a length, at most two thirds of a window apart; the last ends with it."""
    step = max(1, int(window * STRIDE))
    return [min(k * step, length - window) for k in range(math.ceil((length - window) / step) + 1)]


def places(size: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """The top left corners of windows that cover an image of a size."""
    return list(product(starts(size[0], window[0]), starts(size[1], window[1])))


def window_of(
    sample: Sample, corner: tuple[int, int], window: tuple[int, int], modalities: Sequence[Modality]
) -> Sample:
    """The part of a sample that lies in a window."""

    def cut(image: Tensor, stride: int) -> Tensor:
        rows, columns = (slice(a // stride, (a + w) // stride) for a, w in zip(corner, window, strict=True))
        return image[:, rows, columns]

    maps = {m.name: cut(sample.maps[m.name], m.stride) for m in modalities}
    known = {m.name: sample.valid.get(m.name) for m in modalities}
    return Sample(maps, {m.name: None if (k := known[m.name]) is None else cut(k, m.stride) for m in modalities})


def jittered(batch: Batch, probability: float) -> Batch:
    """The batch with the colours of some of its images changed: brightness, contrast, saturation, in this order."""
    images = batch.maps.get("rgb")
    if not probability or images is None:
        return batch
    draws = batch.rng.uniform("colour jitter", 1 + len(JITTER))
    changed: Float[Tensor, "B C H W"] = images
    for k, (name, strength) in enumerate(JITTER.items(), start=1):
        changed = getattr(colour, name)(changed, 1 + strength * (2 * draws[:, k] - 1))
    where = (draws[:, 0] < probability)[:, None, None, None]
    if "rgb" in batch.valid:
        where = where & batch.valid["rgb"]
    return replace(batch, maps={**batch.maps, "rgb": torch.where(where, changed, images)})
