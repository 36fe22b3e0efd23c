"""All that a recipe file needs, by names that stay: `from unveil.parts import Encoder, Masker, Recipe, ...`."""

from __future__ import annotations

from .data.transforms import Flip, View
from .modeling.adaptive_budget import AdaptiveBudget
from .modeling.decoder import Blend, CrossDecoder, Decoder, PromptingDecoder, Readout, SelfDecoder, TaskDecoder
from .modeling.encoder import Encoder, vit
from .modeling.losses import Loss, cosine, cross_entropy, l1, l2, smooth_l1
from .modeling.masked_model import Blank, MaskedModel, Objective, drop, linear_head
from .modeling.masking import (
    AttentionGuided,
    Blockwise,
    ByModality,
    CollaborativeAttention,
    DirichletBudget,
    Grid,
    Gumbel,
    Hard,
    HardestFirst,
    Hint,
    InverseBlockwise,
    Masker,
    Noisy,
    Reversed,
    TeacherAttention,
    TokenScore,
    Uniform,
)
from .modeling.optim import Optim
from .modeling.targets import HOG, Classes, Features, PatchStatistics, Pixels, Target
from .modeling.teachers import EMATeacher, FrozenTeacher, Momentum, OnlineTeacher, load_teacher
from .modeling.types import DEPTH, RGB, SEMSEG, Batch, Latents, Mask, Modality, Observations, Queries, Tokens
from .recipes.recipe import Hyperparameters, Recipe, Stage, check_choices, once

__all__ = [
    "DEPTH", "HOG", "RGB", "SEMSEG", "AdaptiveBudget", "AttentionGuided", "Batch", "Blank", "Blend", "Blockwise",
    "ByModality", "Classes", "CollaborativeAttention", "CrossDecoder", "Decoder", "DirichletBudget", "EMATeacher",
    "Encoder", "Features", "Flip", "FrozenTeacher", "Grid", "Gumbel", "Hard", "HardestFirst", "Hint",
    "Hyperparameters", "InverseBlockwise", "Latents", "Loss", "Mask", "MaskedModel", "Masker", "Modality", "Momentum",
    "Noisy", "Objective", "Observations", "OnlineTeacher", "Optim", "PatchStatistics", "Pixels", "PromptingDecoder",
    "Queries", "Readout", "Recipe", "Reversed", "SelfDecoder", "Stage", "Target", "TaskDecoder", "TeacherAttention",
    "TokenScore", "Tokens", "Uniform", "View", "check_choices", "cosine", "cross_entropy", "drop", "l1", "l2",
    "linear_head", "load_teacher", "once", "smooth_l1", "vit",
]  # fmt: skip
