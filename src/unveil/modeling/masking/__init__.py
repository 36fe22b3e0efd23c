"""Masking: which tokens are hidden, which are asked for.

A score is `(Tokens, Observations, Batch) -> B N`, high = hide first. It reads the batch's chance and progress, never
its pixels, and imports no model.
"""

from .attention_guided import (
    FUSIONS,
    AttentionGuided,
    AttentionMap,
    CollaborativeAttention,
    HardestFirst,
    MapFusion,
    MapNorm,
    TeacherAttention,
    entropy,
    linear,
)
from .budget import DirichletBudget, TaskSampling, log_dirichlet_draw, score_by_budget
from .combinators import ByModality, IfObserved, LossMap, RandomHeads
from .masker import Masker, TokenScore, Uniform, floor, modality_queries, unit_in_tokens
from .patterns import PATTERNS, Blockwise, Grid, InverseBlockwise
from .sampling import SAMPLERS, Gumbel, Hard, Hint, Noisy, Reversed, Sampler, SamplerName, make_sampler

__all__ = [
    "FUSIONS",
    "PATTERNS",
    "SAMPLERS",
    "AttentionGuided",
    "AttentionMap",
    "Blockwise",
    "ByModality",
    "CollaborativeAttention",
    "DirichletBudget",
    "Grid",
    "Gumbel",
    "Hard",
    "HardestFirst",
    "Hint",
    "IfObserved",
    "InverseBlockwise",
    "LossMap",
    "MapFusion",
    "MapNorm",
    "Masker",
    "Noisy",
    "RandomHeads",
    "Reversed",
    "Sampler",
    "SamplerName",
    "TaskSampling",
    "TeacherAttention",
    "TokenScore",
    "Uniform",
    "entropy",
    "floor",
    "linear",
    "log_dirichlet_draw",
    "make_sampler",
    "modality_queries",
    "score_by_budget",
    "unit_in_tokens",
]
