"""The hyper-parameters that all recipes share, and the parts of a recipe that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.transforms import Flip, View
from ..modeling.encoder import Encoder, vit
from ..modeling.masking import Masker
from ..modeling.optim import Optim
from ..modeling.types import Modality

LrScale = Literal["predicted", "inverse", "none"]


@dataclass(frozen=True)
class Hyperparameters:
    """Model size, schedule, optimiser and augmentation. The defaults are MAE's (arXiv 2111.06377, table 8).

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    epochs: passes over the data
    warmup_epochs: epochs in which the learning rate rises
    batch_size: images per update, over all devices and micro-batches
    lr: learning rate per 256 images of the batch
    weight_decay: of AdamW, on matrices and tokens
    clip: largest norm of the gradient; none: no limit
    crop_scale: smallest share of the image's area that a view shows
    flip: none, h, hv, or d4 (flips and quarter turns: satellite, microscopy)
    """

    size: str = "base"
    patch: int = 16
    image_size: tuple[int, ...] = (224,)
    epochs: float = 800
    warmup_epochs: float = 40
    batch_size: int = 4096
    lr: float = 1.5e-4
    weight_decay: float = 0.05
    clip: float | None = None
    crop_scale: float = 0.2
    flip: Flip = "h"

    def vit(self, *modalities: Modality, final_norm: bool = True) -> Encoder:
        """A new ViT of this size, patch and image size that reads the given modalities."""
        return vit(self.size, self.patch, self.image_size, modalities, final_norm)

    def optim(self, betas: tuple[float, float] = (0.9, 0.95), lr_factor: float = 1.0) -> Optim:
        """AdamW with a linear warm-up and a cosine decay."""
        return Optim(self.lr, self.batch_size, self.warmup_epochs, self.weight_decay, betas, self.clip, lr_factor)

    def view(self, encoder: Encoder) -> View:
        """Random resized crops of the encoder's image size, flipped."""
        return View(encoder.image_size, (self.crop_scale, 1.0), flip=self.flip)


def lr_factor(lr_scale: LrScale, masker: Masker) -> float:
    """The factor of the learning rate: predicted/hidden patches (CrossMAE's released code), its inverse, or 1."""
    share = masker.predicted / (1 - masker.visible)
    return {"predicted": share, "inverse": 1 / share, "none": 1.0}[lr_scale]
