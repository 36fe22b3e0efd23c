"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., 2022; arXiv 2112.09133)."""

from __future__ import annotations

from ..modeling.decoder import Readout
from ..modeling.encoder import vit
from ..modeling.masked_model import Blank, MaskedModel, Objective
from ..modeling.masking import Block, Masker
from ..modeling.optim import Optim
from ..modeling.targets import HOG
from ..modeling.types import RGB, Modality
from .recipe import Flip, Recipe, Stage, View


def recipe(
    *,
    modality: Modality = RGB,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    visible: float = 0.6,
    bins: int = 9,
    epochs: float = 300,
    warmup_epochs: float = 30,
    batch_size: int = 2048,
    lr: float = 2e-4,
    weight_decay: float = 0.05,
    clip: float | None = 0.02,
    crop_scale: float = 0.5,
    flip: Flip = "h",
) -> Recipe:
    """MaskFeat: hide blocks behind a mask token, encode everything, predict histograms of oriented gradients.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    visible: share of the image that is not masked
    bins: directions that a histogram tells apart
    epochs: passes over the data
    warmup_epochs: epochs in which the learning rate rises
    batch_size: images per update, over all devices and micro-batches
    lr: learning rate per 256 images of the batch
    weight_decay: of AdamW, on matrices and tokens
    clip: largest norm of the gradient; none for no limit
    crop_scale: smallest share of the image's area that a view shows
    flip: none, h, hv, or turns (flips and quarter turns: satellite, microscopy)
    """
    encoder = vit(size, patch, image_size, (modality,))
    masker = Masker(Block(), visible, 1 - visible)

    def build() -> MaskedModel:
        return MaskedModel(
            encoder,
            masker,
            decoders={"hog": Readout(modality.name, encoder)},
            objectives=[Objective("hog", "hog", encoder.dim, HOG(modality, patch, bins))],
            hide=Blank(encoder),
        )

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, betas=(0.9, 0.999), clip=clip),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
