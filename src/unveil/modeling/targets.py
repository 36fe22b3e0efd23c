"""Targets: the values to predict at every token. One contract: `(Batch, Observations) -> values B N T, valid`.

`valid` broadcasts to the values: 0 where there is no ground truth, 1 where there is. Shapes: B batch, N tokens, T
numbers of a token's target, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .constants import constant
from .patches import normalised, patchify, validity
from .types import Batch, Modality, Observations

TargetValues = tuple[Tensor, Tensor]
NORM_PIX_EPS = 1e-6
FEATURE_EPS = 1e-6
CELL = 8  # the side in pixels that a cell has in MaskFeat


class Target(Protocol):
    """The values to predict at every token, and where they are valid; `dim` is the width of a token's prediction."""

    @property
    def dim(self) -> int: ...

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues: ...


def patch_statistics(patches: Float[Tensor, "B N T"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Mean and standard deviation of each patch, as norm-pix uses them (unbiased variance plus 1e-6)."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (var + NORM_PIX_EPS).sqrt()


@dataclass(frozen=True)
class Pixels:
    """The pixels of each patch, normalised by the modality's statistics and, with `norm_pix`, by the patch's own.

    MAE (arXiv 2111.06377), section 3. T = patch x patch x channels, laid out row, column, channel.
    Pixels that are invalid, not finite or of a sample without this modality do not count.
    """

    modality: Modality
    patch: int
    norm_pix: bool = True

    @property
    def dim(self) -> int:
        return self.modality.channels * self.modality.side(self.patch) ** 2

    def patches(self, batch: Batch) -> Float[Tensor, "B N T"]:
        valid = validity(batch, self.modality)
        return patchify(normalised(batch, self.modality, valid), self.modality.side(self.patch))

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        patches = self.patches(batch)
        if self.norm_pix:
            mean, std = patch_statistics(patches)
            patches = (patches - mean) / std
        valid = patchify(validity(batch, self.modality), self.modality.side(self.patch))
        return patches, valid.repeat_interleave(self.modality.channels, dim=2)


@dataclass(frozen=True)
class PatchStatistics:
    """Mean and standard deviation of each channel in each patch: what norm-pix takes away from a patch.

    Of pixels normalised by the modality's statistics; T = 2 x channels, the means first. Pixels that are invalid, not
    finite or of a sample without this modality do not count, nor do patches without any other.
    """

    modality: Modality
    patch: int

    @property
    def dim(self) -> int:
        return 2 * self.modality.channels

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        side, channels = self.modality.side(self.patch), self.modality.channels
        valid = validity(batch, self.modality)
        pixels = patchify(normalised(batch, self.modality, valid), side).unflatten(-1, (-1, channels))
        weight = patchify(valid, side)[..., None].to(pixels.dtype)  # B N pixels 1
        count = weight.sum(dim=2)
        mean = (pixels * weight).sum(dim=2) / count.clamp_min(1)
        variance = ((pixels - mean[:, :, None]).square() * weight).sum(dim=2) / (count - 1).clamp_min(1)
        return torch.cat([mean, (variance + NORM_PIX_EPS).sqrt()], dim=-1), (count > 0).to(pixels.dtype)


@dataclass(frozen=True)
class Classes:
    """The class of each pixel of a categorical map (MultiMAE, arXiv 2204.01678). Void pixels do not count.

    The values are one class id per pixel; a prediction has `dim` numbers, the logits of one pixel after another.
    """

    modality: Modality
    patch: int

    @property
    def dim(self) -> int:
        return self.modality.num_classes * self.modality.side(self.patch) ** 2

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        valid = validity(batch, self.modality)
        classes = torch.where(valid, batch.maps[self.modality.name], 0)
        side = self.modality.side(self.patch)
        return patchify(classes, side), patchify(valid, side)


@dataclass(frozen=True)
class HOG:
    """Histograms of oriented gradients in each patch: MaskFeat (arXiv 2112.09133), section 3.2.

    Sobel gradients of every channel vote, by their length, for one of `bins` orientations of an edge (in [0, pi)); the
    votes are summed in cells of a patch and each cell's histogram is scaled to unit length. A cell's side is the
    divisor of the patch that is nearest to 8 pixels. T = cells of a patch x channels x bins: 108 at a patch of 16.
    Patches with an invalid pixel, or beside one, do not count. The Gaussian window of the public code is left out.
    """

    modality: Modality
    patch: int
    bins: int = 9

    @property
    def side(self) -> int:
        return self.modality.side(self.patch)

    @property
    def cell(self) -> int:
        return sorted([(abs(c - CELL), c) for c in range(1, self.side + 1) if self.side % c == 0])[0][1]

    @property
    def dim(self) -> int:
        return (self.side // self.cell) ** 2 * self.modality.channels * self.bins

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        valid = validity(batch, self.modality)
        image = torch.where(valid, batch.maps[self.modality.name], 0).float()
        ramp, smooth = constant((-1.0, 0.0, 1.0), image), constant((1.0, 2.0, 1.0), image)
        padded = F.pad(image, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]  # (B C) 1 H+2 W+2
        across = F.conv2d(F.conv2d(padded, ramp.view(1, 1, 1, 3)), smooth.view(1, 1, 3, 1))
        down = F.conv2d(F.conv2d(padded, smooth.view(1, 1, 1, 3)), ramp.view(1, 1, 3, 1))
        length = (across.square() + down.square()).sqrt()
        direction = torch.atan2(down, across) / math.pi * self.bins  # an edge and its reverse are one
        bins = direction.floor().long() % self.bins
        votes = [F.avg_pool2d(torch.where(bins == k, length, 0.0), self.cell) for k in range(self.bins)]
        histograms = F.normalize(torch.cat(votes, dim=1), dim=1)  # (B C) bins cells
        side = self.side // self.cell
        values = rearrange(histograms, "(b c) k (h p) (w q) -> b (h w) (p q c k)", c=image.shape[1], p=side, q=side)
        if self.modality.name not in {**batch.valid, **batch.present}:
            return values, values.new_ones(1, 1, 1)
        holes = F.max_pool2d((~valid).float(), 3, stride=1, padding=1)  # and the pixels whose gradients read them
        return values, 1 - F.max_pool2d(holes, self.side)[:, 0].flatten(1)[..., None]


@dataclass(frozen=True)
class Features:
    """A teacher's features of each token, `dim` wide; its `FeatureSpec` says which layers, and how they are averaged.

    `layer` normalises each token's by their own mean and standard deviation, without parameters (MaskDistill's
    whitening, arXiv 2210.10615), `l2` to unit length. Samples without the modality do not count.
    """

    teacher: str
    modality: str
    dim: int
    normalise: Literal["layer", "l2", "none"] = "layer"

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        observation = observations[self.teacher]
        assert observation.features is not None, f"the FeatureSpec of {self.teacher} names no features"
        features = observation.features[:, observation.layout.spans[self.modality]].float()
        if self.normalise == "layer":
            features = F.layer_norm(features, features.shape[-1:], eps=FEATURE_EPS)
        elif self.normalise == "l2":
            features = F.normalize(features, dim=-1)
        if self.modality in batch.present:
            return features, batch.present[self.modality][:, None, None].to(features.dtype)
        return features, features.new_ones(1, 1, 1)
