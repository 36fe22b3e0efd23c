"""The baselines of an evaluation that need no run: raw pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..modeling.types import Modality, Pool

LONGEST_SIDE = 32  # 3 x 32 x 32 = 3072 numbers an image; at 224 pixels it would be 150,528


@dataclass(frozen=True)
class RawPixels:
    """The image itself as its feature: normalised per channel and flattened, its longer side at most 32 pixels."""

    modality: Modality
    encoder_size: tuple[int, int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def channels(self) -> int:
        return self.modality.channels

    @property
    def image_size(self) -> tuple[int, int]:
        """The encoder's size, shrunk to fit 32 pixels."""
        longest = max(*self.encoder_size, LONGEST_SIDE)
        height, width = (max(1, side * LONGEST_SIDE // longest) for side in self.encoder_size)
        return height, width

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B C*H*W"]:
        """Flattened normalised pixels, whatever the pool."""
        mean, std = (images.new_tensor(s)[:, None, None] for s in (self.modality.mean, self.modality.std))
        return ((images - mean) / std).flatten(1)
