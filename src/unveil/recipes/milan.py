"""MILAN: Masked Image Pretraining on Language Assisted Representation (Hou et al., 2022; arXiv 2208.06049).

The loss is the mean over all tokens, as the paper's is: visible and hidden patches, and the class token. Images reach
the teacher normalised as it was trained, where the public code hands it images normalised for ImageNet.
"""

from __future__ import annotations

from typing import Literal

import torch

from ..modeling.decoder import PromptingDecoder
from ..modeling.losses import cosine
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import AttentionGuided, Gumbel, Masker, Reversed, TeacherAttention
from ..modeling.objectives import ClassToken
from ..modeling.targets import Features
from ..modeling.teachers import load_teacher
from ..modeling.types import RGB, FeatureSpec, Modality
from .recipe import DecoderShape, Hyperparameters, Recipe, Stage


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=400, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    teacher: str = "openai/clip-vit-base-patch16",
    teacher_channels: tuple[int, ...] | None = None,
    projected: bool = True,
    visible: float = 0.25,
    positions: Literal["predicted", "all"] = "all",
    shape: DecoderShape = DecoderShape(),
) -> Recipe:
    """MILAN: keep what a teacher attends to, predict its features of every patch.

    teacher: the frozen encoder: a file, a folder, a run, a name on the hub, or random as a control
    teacher_channels: which channels of an image the teacher reads, counted from 1; by default all
    projected: take the teacher's features after its output projection, where it has one (CLIP)
    visible: share of the patches that the encoder reads
    positions: which tokens are compared: the predicted patches, or all patches and the class token
    """
    encoder = train.vit(modality)
    masker = Masker(AttentionGuided(TeacherAttention("teacher"), Reversed(Gumbel())), visible)
    place = (modality.name, encoder, *shape.dims)

    is_all = positions == "all"
    share = 1 / (encoder.grid[0] * encoder.grid[1] + 1) if is_all else 0.0  # of the class token among all tokens
    seed = torch.initial_seed()

    def build() -> MaskedModel:
        spec = FeatureSpec(projected=projected, class_token=is_all)
        guide = load_teacher(teacher, encoder, spec, teacher_channels, seed=seed)
        decoder = PromptingDecoder(*place, outputs=positions)
        target = Features("teacher", modality.name, guide.dim, "none")
        features = Objective("features", "features", shape.decoder_dim, target, cosine, weight=1 - share)
        whole = [ClassToken("class token", "teacher", decoder, features, share)] if is_all else []
        return MaskedModel(encoder, masker, {"features": decoder}, [features, *whole], {"teacher": guide})

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
