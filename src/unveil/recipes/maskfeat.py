"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., 2022; arXiv 2112.09133)."""

from __future__ import annotations

from ..modeling.decoder import Readout
from ..modeling.masked_model import Blank, MaskedModel, Objective
from ..modeling.masking import Blockwise, Masker
from ..modeling.targets import HOG
from ..modeling.types import RGB, Modality
from .recipe import Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(
        epochs=300, warmup_epochs=30, batch_size=2048, lr=2e-4, clip=0.02, crop_scale=0.5
    ),
    visible: float = 0.6,
    bins: int = 9,
) -> Recipe:
    """MaskFeat: hide blocks behind a mask token, encode everything, predict histograms of oriented gradients.

    visible: share of the image that is not masked
    bins: directions that a histogram tells apart
    """
    encoder = train.vit(modality)
    masker = Masker(Blockwise(), visible)

    def build() -> MaskedModel:
        decoders = {"hog": Readout(modality.name, encoder)}
        objectives = [Objective("hog", "hog", encoder.dim, HOG(modality, train.patch, bins))]
        return MaskedModel(encoder, masker, decoders, objectives, hide=Blank(encoder))

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(betas=(0.9, 0.999)), train.view(encoder))
