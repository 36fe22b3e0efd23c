"""Histograms of oriented gradients as the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange

from ..types import Batch, Modality, Observations
from .target import TargetValues

CELL = 8  # the side in pixels that a cell has in MaskFeat


@dataclass(frozen=True)
class HOG:
    """Where edges point in each patch: MaskFeat (arXiv 2112.09133), section 3.2.

    Sobel gradients of every channel vote, by their length, for one of `bins` directions of an edge (a half turn); the
    votes are added up in cells of a patch and each cell's histogram is brought to unit length. A cell's side is the
    divisor of the patch that is nearest to 8 pixels. T = cells of a patch x channels x bins: 108 at a patch of 16.
    The Gaussian window of the public code is left out.
    """

    modality: Modality
    patch: int
    bins: int = 9

    @property
    def cell(self) -> int:
        """The side of a cell in pixels."""
        return sorted([(abs(c - CELL), c) for c in range(1, self.patch + 1) if self.patch % c == 0])[0][1]

    @property
    def dim(self) -> int:
        """T, the numbers of one patch."""
        return (self.patch // self.cell) ** 2 * self.modality.channels * self.bins

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        image = batch.maps[self.modality.name].float()
        ramp, smooth = image.new_tensor([-1.0, 0.0, 1.0]), image.new_tensor([1.0, 2.0, 1.0])
        padded = F.pad(image, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]  # (B C) 1 H+2 W+2
        across = F.conv2d(F.conv2d(padded, ramp.view(1, 1, 1, 3)), smooth.view(1, 1, 3, 1))
        down = F.conv2d(F.conv2d(padded, smooth.view(1, 1, 1, 3)), ramp.view(1, 1, 3, 1))
        length = (across.square() + down.square()).sqrt()
        direction = torch.atan2(down, across) / math.pi * self.bins  # an edge and its reverse are one
        bins = direction.floor().long() % self.bins
        votes = [F.avg_pool2d(torch.where(bins == k, length, 0.0), self.cell) for k in range(self.bins)]
        histograms = F.normalize(torch.cat(votes, dim=1), dim=1)  # (B C) bins cells
        side = self.patch // self.cell
        values = rearrange(
            histograms,
            "(b c) k (h p) (w q) -> b (h w) (p q c k)",
            c=self.modality.channels, p=side, q=side,
        )  # fmt: skip
        return values, values.new_ones(1, 1, 1)
