"""A target: the class of each pixel of a categorical map."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..patches import patchify, validity
from ..types import Batch, Modality, Observations
from .target import TargetValues


@dataclass(frozen=True)
class Classes:
    """The class of each pixel of a categorical map (MultiMAE, arXiv 2204.01678). Void pixels do not count.

    The truth is one class id a pixel; a guess of it has `dim` numbers, the logits of one pixel after another.
    """

    modality: Modality
    patch: int

    @property
    def dim(self) -> int:
        """The numbers of one patch's guess."""
        return self.modality.num_classes * self.modality.side(self.patch) ** 2

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        valid = validity(batch, self.modality)
        truth = torch.where(valid, batch.maps[self.modality.name], 0)
        side = self.modality.side(self.patch)
        return patchify(truth, side), patchify(valid, side)
