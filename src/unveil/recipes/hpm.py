"""HPM: Hard Patches Mining for Masked Image Modeling (Wang et al., 2023; arXiv 2304.05919)."""

from __future__ import annotations

from ..modeling.decoder import SelfDecoder
from ..modeling.masked_model import MaskedModel, Objective, linear_head
from ..modeling.masking import HardestFirst, Masker
from ..modeling.objectives import DecoderLossPrediction, Ranking
from ..modeling.targets import Pixels
from ..modeling.teachers import EMALossPredictor, Momentum
from ..modeling.types import RGB, Modality
from .recipe import DecoderShape, Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    visible: float = 0.25,
    norm_pix: bool = True,
    hardest: float = 0.0,
    hardest_end: float = 0.5,
    momentum: float = 0.999,
    momentum_end: float = 0.9999,
    momentum_epochs: float = 100,
    shape: DecoderShape = DecoderShape(),
) -> Recipe:
    """HPM: a second decoder predicts how hard each patch is; more and more of the hardest ones are hidden.

    visible: share of the patches that the encoder reads
    norm_pix: predict each patch normalised by its own mean and standard deviation
    hardest: share of the hidden patches that are the hardest, at first; the others are drawn at random
    hardest_end: the same share at the end of training
    momentum: momentum of the student's moving average, at first
    momentum_end: momentum after momentum_epochs
    momentum_epochs: epochs in which the momentum rises
    """
    encoder = train.vit(modality)
    masker = Masker(HardestFirst("student", 1 - visible, hardest, hardest_end), visible)
    follows = Momentum(momentum, momentum_end, "linear", until=max(momentum_epochs / train.epochs, 1e-9))
    place = (modality.name, encoder, *shape.dims)

    def build() -> MaskedModel:
        pixels = Objective("pixels", "pixels", shape.decoder_dim, Pixels(modality, train.patch, norm_pix))
        predictor, head = SelfDecoder(*place), linear_head(shape.decoder_dim, 1, bias=False)  # a rank knows no offset
        decoders = {"pixels": SelfDecoder(*place), "errors": predictor}
        ranking = Ranking("errors", [pixels], DecoderLossPrediction("errors", head))
        teachers = {"student": EMALossPredictor(encoder, predictor, head, follows)}
        return MaskedModel(encoder, masker, decoders, [pixels, ranking], teachers)

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
