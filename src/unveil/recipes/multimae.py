"""MultiMAE: Multi-modal Multi-task Masked Autoencoders (Bachmann et al., 2022; arXiv 2204.01678)."""

from __future__ import annotations

from typing import Literal

from ..modeling.masked_model import MaskedModel
from ..modeling.masking import ByModality, Masker, TokenScore, pattern
from ..modeling.types import DEPTH, RGB, SEMSEG, Modality
from .multimodal import MultiMAEOptions, make_budget, make_decoders
from .recipe import Hyperparameters, Recipe, Stage


def recipe(
    *,
    modalities: tuple[Modality, ...] = (RGB, DEPTH, SEMSEG),
    train: Hyperparameters = Hyperparameters(epochs=1600, warmup_epochs=40, batch_size=2048, lr=1e-4),
    visible: float = 1 / 6,
    predicted: float | None = None,
    masking: Literal["uniform", "block", "inverse-block", "grid"] | TokenScore = "uniform",
    shared: MultiMAEOptions = MultiMAEOptions(),
) -> Recipe:
    """MultiMAE: from a few patches of all modalities together, predict the others of every one.

    visible: share of the patches of all modalities that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    masking: the order in which the patches of a modality are hidden, or a score of your own, FILE.py:NAME
    """
    if shared.teacher is not None and not shared.teaches:
        raise ValueError(
            f"target={shared.target} reads no teacher; use --target teacher or collaborative with --teacher"
        )
    encoder = shared.encoder(train, modalities)

    def build() -> MaskedModel:
        teachers = shared.teachers(encoder)
        decoders, objectives = make_decoders(modalities, encoder, shared, teachers)
        score = make_budget(ByModality(pattern(masking)), encoder, objectives, shared)
        masker = Masker(score, visible, predicted)
        return MaskedModel(encoder, masker, decoders, objectives, teachers, shared.hider(encoder))

    return Recipe(encoder, (Stage(build, train.epochs),), shared.optim(train), train.view(encoder))
