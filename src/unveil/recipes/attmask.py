"""AttMask: What to Hide from Your Students: Attention-Guided Masked Image Modeling (Kakogeorgiou et al., 2022;
arXiv 2203.12719).

Its masks, with MAE's model and loss: what an average of the student attends to is hidden. Its own
objective, iBOT's self-distillation of class and patch tokens between two views, is not of this kind and left out, and
with it the share of hidden patches that is drawn for each batch from 0.1 to 0.5, and the half of all images of which
nothing is hidden: `visible` is MAE's quarter.
"""

from __future__ import annotations

from typing import Literal

from ..modeling.decoder import SelfDecoder
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import AttentionGuided, Hard, Hint, Masker, Reversed, Sampler, TeacherAttention, TokenScore
from ..modeling.targets import Pixels
from ..modeling.teachers import EMATeacher, Momentum
from ..modeling.types import RGB, FeatureSpec, Modality
from .recipe import DecoderShape, Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    masking: Literal["high", "hint", "low"] | TokenScore = "high",
    hint_top: float = 0.1,
    hint_shown: float = 0.03,
    momentum: float = 0.996,
    momentum_end: float = 1.0,
    visible: float = 0.25,
    predicted: float | None = None,
    norm_pix: bool = True,
    shape: DecoderShape = DecoderShape(),
) -> Recipe:
    """AttMask: hide what a moving average of the student attends to; MAE's loss.

    masking: hide the most attended patches (high), all but a few of them (hint), the least attended (low), or by a
        score of your own, FILE.py:NAME
    hint_top: share of the patches, the most attended, among which hints are drawn
    hint_shown: share of all patches that are drawn as hints and stay visible
    momentum: momentum of the student's moving average, at first
    momentum_end: momentum at the end of training
    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    norm_pix: predict each patch normalised by its own mean and standard deviation
    """
    encoder = train.vit(modality)
    draws: dict[str, Sampler] = {"high": Hard(), "hint": Hint(hint_top, hint_shown), "low": Reversed(Hard())}
    attention = TeacherAttention("student")
    score = AttentionGuided(attention, draws[masking]) if isinstance(masking, str) else masking
    masker = Masker(score, visible, predicted)

    def build() -> MaskedModel:
        decoders = {"pixels": SelfDecoder(modality.name, encoder, *shape.dims)}
        objectives = [Objective("pixels", "pixels", shape.decoder_dim, Pixels(modality, train.patch, norm_pix))]
        teachers = {"student": EMATeacher(encoder, Momentum(momentum, momentum_end), FeatureSpec(features=0))}
        return MaskedModel(encoder, masker, decoders, objectives, teachers)

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
