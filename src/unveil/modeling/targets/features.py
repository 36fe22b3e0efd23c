"""What a teacher makes of the whole input, as the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F

from ..types import Batch, Observations
from .target import TargetValues

EPS = 1e-6


@dataclass(frozen=True)
class Features:
    """A teacher's features of each token, `dim` wide: which layers, and how they are averaged, is its `FeatureSpec`.

    `layer` normalises each token's by their own mean and standard deviation, without parameters (MaskDistill's
    whitening, arXiv 2210.10615, section 2.1), `l2` to unit length.
    """

    teacher: str
    modality: str
    dim: int
    normalise: Literal["layer", "l2", "none"] = "layer"

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues:
        seen = observations[self.teacher]
        assert seen.features is not None, f"{self.teacher} was not asked for its features"
        features = seen.features[:, seen.layout.spans[self.modality]].float()
        if self.normalise == "layer":
            features = F.layer_norm(features, features.shape[-1:], eps=EPS)
        elif self.normalise == "l2":
            features = F.normalize(features, dim=-1)
        return features, features.new_ones(1, 1, 1)
