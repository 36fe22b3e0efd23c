"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., 2022; arXiv 2111.06377)."""

from __future__ import annotations

from ..modeling.decoder import SelfDecoder
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Masker, Uniform
from ..modeling.targets import Pixels
from ..modeling.types import RGB, Modality
from .recipe import DecoderShape, Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    visible: float = 0.25,
    predicted: float | None = None,
    norm_pix: bool = True,
    shape: DecoderShape = DecoderShape(),
) -> Recipe:
    """MAE: hide three quarters of the patches, encode the rest, predict the hidden pixels.

    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    norm_pix: predict each patch normalised by its own mean and standard deviation
    """
    encoder = train.vit(modality)
    masker = Masker(Uniform(), visible, predicted)

    def build() -> MaskedModel:
        decoders = {"pixels": SelfDecoder(modality.name, encoder, *shape.dims)}
        objectives = [Objective("pixels", "pixels", shape.decoder_dim, Pixels(modality, train.patch, norm_pix))]
        return MaskedModel(encoder, masker, decoders, objectives)

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
