"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., 2022; arXiv 2111.09886), on a ViT."""

from __future__ import annotations

from ..modeling.decoder import Readout
from ..modeling.losses import l1
from ..modeling.masked_model import Blank, MaskedModel, Objective
from ..modeling.masking import Masker, Uniform, unit_in_tokens
from ..modeling.targets import Pixels
from ..modeling.types import RGB, Modality
from .recipe import Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(
        epochs=800, warmup_epochs=20, batch_size=2048, lr=0.5e-4, clip=5.0, crop_scale=0.67
    ),
    visible: float = 0.4,
    mask_unit: int = 32,
    norm_pix: bool = False,
) -> Recipe:
    """SimMIM: hide squares behind a mask token, encode everything, predict the raw pixels with one linear layer.

    visible: share of the image that is not masked
    mask_unit: side in pixels of the squares that are hidden whole, a multiple of the patch
    norm_pix: predict each patch normalised by its own mean and standard deviation
    """
    encoder = train.vit(modality)
    masker = Masker(Uniform(), visible, unit=unit_in_tokens(mask_unit, train.patch))

    def build() -> MaskedModel:
        decoders = {"pixels": Readout(modality.name, encoder)}
        objectives = [Objective("pixels", "pixels", encoder.dim, Pixels(modality, train.patch, norm_pix), l1)]
        return MaskedModel(encoder, masker, decoders, objectives, hide=Blank(encoder))

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(betas=(0.9, 0.999)), train.view(encoder))
