"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., 2022; arXiv 2111.06377)."""

from __future__ import annotations

from ..modeling.decoder import SelfDecoder
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Masker, Uniform
from ..modeling.targets import Pixels
from ..modeling.types import RGB, Modality
from .recipe import Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    visible: float = 0.25,
    predicted: float | None = None,
    norm_pix: bool = True,
    decoder_dim: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
) -> Recipe:
    """MAE: hide three quarters of the patches, encode the rest, predict the hidden pixels.

    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    norm_pix: predict each patch normalised by its own mean and standard deviation
    decoder_dim: width of the decoder
    decoder_depth: number of the decoder's blocks
    decoder_heads: number of the decoder's attention heads
    """
    encoder = train.vit(modality)

    masker = Masker(Uniform(), visible, predicted)

    def build() -> MaskedModel:
        return MaskedModel(
            encoder,
            masker,
            decoders={"pixels": SelfDecoder(modality.name, encoder, decoder_dim, decoder_depth, decoder_heads)},
            objectives=[Objective("pixels", "pixels", decoder_dim, Pixels(modality, train.patch, norm_pix))],
        )

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
