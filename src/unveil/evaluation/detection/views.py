"""Views of images with objects: large-scale jitter to learn, the whole image to test, and the objects in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ...data.detection.annotations import Objects
from ...data.detection.masks import Window
from ...data.transforms import Cut, Keys, Sample, view_of
from ...modeling.rng import SampleRng
from ...modeling.types import Modality
from ..dense.data import padded

LEAST_SIDE = 1.0  # pixels of a view, below which what is left of a box is no object
LEAST_SHARE = 0.1  # of a box that has to be in the view, in each direction, for the object to be there


@dataclass(frozen=True)
class DetectionView:
    """How views of `image_size` (height, width) are drawn: large-scale jitter (Ghiasi et al., 2021).

    The scale is drawn evenly between `scales` and counts from the one at which the whole image lies just inside the
    view. A larger image is cut at random, a smaller one is padded to the right and below. Half of the views are
    mirrored.
    """

    image_size: tuple[int, int]
    scales: tuple[float, float] = (0.1, 2.0)

    def __call__(self, samples: Sequence[Sample], modalities: Sequence[Modality], keys: Keys) -> list[Sample]:
        """A random view of each sample, drawn by its key."""
        cuts = self.cuts([sample.size for sample in samples], keys)
        return [
            padded(view_of(sample, cut, made, modalities), self.image_size, modalities)
            for sample, (cut, made) in zip(samples, cuts, strict=True)
        ]

    def cuts(self, sizes: Sequence[tuple[int, int]], keys: Keys) -> list[tuple[Cut, tuple[int, int]]]:
        """What is cut from images of these sizes by these keys, and the size that it is resized to."""
        return [
            self._cut(size, *numbers)
            for size, numbers in zip(sizes, SampleRng(keys).uniform("large-scale jitter", 4).tolist(), strict=True)
        ]

    def _cut(
        self, size: tuple[int, int], scale: float, down: float, right: float, mirror: float
    ) -> tuple[Cut, tuple[int, int]]:
        height, width = size
        factor = self._inside(size) * (self.scales[0] + scale * (self.scales[1] - self.scales[0]))
        tall, wide = (min(s, max(1, round(v / factor))) for s, v in zip(size, self.image_size, strict=True))
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        made = [min(v, max(1, round(s * factor))) for s, v in zip((tall, wide), self.image_size, strict=True)]
        cut = Cut(top, left, tall, wide, turned=False, mirrored=mirror < 0.5, upside_down=False)
        return cut, (made[0], made[1])

    def _inside(self, size: tuple[int, int]) -> float:
        return min(own / side for own, side in zip(self.image_size, size, strict=True))

    def windows(self, sizes: Sequence[tuple[int, int]], keys: Keys) -> list[Window]:
        """Where the same views lie in their images."""
        return [self._window(cut, made) for cut, made in self.cuts(sizes, keys)]

    def _window(self, cut: Cut, made: tuple[int, int]) -> Window:
        scales = made[0] / cut.height, made[1] / cut.width
        return Window(*self.image_size, cut.top, cut.left, *scales, cut.mirrored, made[1])

    def whole(self, sample: Sample, modalities: Sequence[Modality]) -> tuple[Sample, tuple[int, int]]:
        """The whole image inside the view, padded to it, and how much of the view is image."""
        height, width = sample.size
        factor = self._inside(sample.size)
        made = (
            min(self.image_size[0], max(1, round(height * factor))),
            min(self.image_size[1], max(1, round(width * factor))),
        )
        cut = Cut(0, 0, height, width, turned=False, mirrored=False, upside_down=False)
        return padded(view_of(sample, cut, made, modalities), self.image_size, modalities), made


def truth_of(objects: Objects, window: Window, with_masks: bool, device: torch.device) -> dict[str, Tensor]:
    """The objects of a view: boxes N 4 in its pixels, labels N from 1, and masks N H W where they are learned.

    Crowds are left out, and so is an object of which less than a tenth of a side, or a pixel, is in the view.
    """
    boxes = window.boxes(objects.boxes)
    cut = boxes.copy()
    cut[:, 0::2], cut[:, 1::2] = boxes[:, 0::2].clip(0, window.width), boxes[:, 1::2].clip(0, window.height)
    sides, own = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    least = np.maximum(LEAST_SIDE, LEAST_SHARE * own)
    rows = np.flatnonzero((sides >= least).all(1) & ~objects.crowd)
    truth = {"labels": torch.from_numpy(objects.labels[rows] + 1).to(device)}
    truth["boxes"] = torch.from_numpy(cut[rows].astype(np.float32)).to(device)
    if with_masks:
        empty = np.zeros((window.height, window.width), bool)
        masks = [empty if (mask := objects.masks[row]) is None else mask.bitmap(window) for row in rows]
        stacked = np.stack(masks) if masks else empty[None][:0]
        truth["masks"] = torch.from_numpy(stacked.astype(np.uint8)).to(device)
    return truth


def rows_of(batch_rows: Int[Tensor, " B"], objects: Sequence[Objects]) -> list[Objects]:
    """The objects of the images with these numbers."""
    return [objects[row] for row in batch_rows.tolist()]
