"""The recipe of this library: CrossMAE with what short runs gained by, in a screen of many parts.

docs/results.md has the table: beside CrossMAE at equal time, and what was tried and left out.
"""

from __future__ import annotations

from ..modeling.decoder import BlendKind, CrossDecoder, choose_maps, make_blend
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Masker, Uniform
from ..modeling.targets import PatchStatistics, Pixels
from ..modeling.types import RGB, Modality
from .recipe import DecoderShape, Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(),
    visible: float = 0.15,
    predicted: float = 0.25,
    statistics: float = 1.0,
    shape: DecoderShape = DecoderShape(),
    blend: BlendKind = "linear",
) -> Recipe:
    """CrossMAE that reads less of an image, and predicts what normalised pixels leave out too: for short budgets.

    visible: share of the patches that the encoder reads: fewer are faster, and so more images are seen
    predicted: share of all patches that is predicted, at most 1 - visible
    statistics: weight of each patch's mean and standard deviation as a further target; 0 leaves it out
    blend: how encoder maps are blended for each decoder block; none reads the last map alone
    """
    if statistics < 0:
        raise ValueError(f"statistics is a weight of at least 0; got {statistics}")
    encoder = train.vit(modality, final_norm=blend == "none")  # else the decoder normalises
    masker = Masker(Uniform(), visible, predicted)

    def build() -> MaskedModel:
        blended = make_blend(blend, encoder, shape.decoder_depth, choose_maps(encoder.depth))
        decoders = {"patches": CrossDecoder(modality.name, encoder, *shape.dims, blended)}
        objectives = [Objective("pixels", "patches", shape.decoder_dim, Pixels(modality, train.patch))]
        if statistics:
            target = PatchStatistics(modality, train.patch)
            objectives.append(Objective("statistics", "patches", shape.decoder_dim, target, weight=statistics))
        return MaskedModel(encoder, masker, decoders, objectives)

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
