"""A target: the pixels of each patch, normalised per patch or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..patches import normalised, patchify, validity
from ..types import Batch, Modality, Observations
from .target import TargetValues

NORM_PIX_EPS = 1e-6


def patch_statistics(patches: Float[Tensor, "B N T"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Mean and standard deviation of each patch, as norm-pix uses them (unbiased variance plus 1e-6)."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (var + NORM_PIX_EPS).sqrt()


@dataclass(frozen=True)
class Pixels:
    """The pixels of each patch, normalised by the modality's statistics and, with `norm_pix`, by the patch's own.

    MAE (arXiv 2111.06377), section 3. T = patch x patch x channels, laid out row, column, channel.
    Pixels without a truth (invalid, not finite, of a sample without this modality) do not count.
    """

    modality: Modality
    patch: int
    norm_pix: bool = True

    @property
    def dim(self) -> int:
        """T, the numbers of one patch."""
        return self.modality.channels * self.modality.side(self.patch) ** 2

    def patches(self, batch: Batch) -> Float[Tensor, "B N T"]:
        return self._patches(batch, validity(batch, self.modality))

    def _patches(self, batch: Batch, valid: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B N T"]:
        return patchify(normalised(batch, self.modality, valid), self.modality.side(self.patch))

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        valid = validity(batch, self.modality)
        patches = self._patches(batch, valid)
        if self.norm_pix:
            mean, std = patch_statistics(patches)
            patches = (patches - mean) / std
        return patches, patchify(valid, self.modality.side(self.patch)).repeat_interleave(self.modality.channels, dim=2)
