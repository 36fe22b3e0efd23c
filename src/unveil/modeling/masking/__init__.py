"""Masking: which tokens are hidden, which are asked for.

A score is `(Tokens, Observations, Batch) -> B N`, high = hide first. It reads the batch's chance and progress, never
its pixels, and imports no model.
"""

from .attention_guided import (
    FUSIONS,
    SAMPLERS,
    AttentionGuided,
    AttentionMap,
    CollaborativeAttention,
    Gumbel,
    Hard,
    HardestFirst,
    Hint,
    LossMap,
    MapFusion,
    MapNorm,
    Noisy,
    Reversed,
    Sampler,
    SamplerName,
    TeacherAttention,
    entropy,
    linear,
    make_sampler,
)
from .by_modality import ByModality, DirichletBudget, IfObserved, RandomHeads, TaskSampling, score_by_budget
from .masker import Masker, TokenScore, Uniform, floor, modality_queries, unit_in_tokens
from .patterns import PATTERNS, Blockwise, Grid, InverseBlockwise, pattern
