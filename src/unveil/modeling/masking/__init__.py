"""Masking: which tokens are hidden, which are asked for.

A score is `(Tokens, Observations, Batch) -> B N`, high = hide first. It reads the batch's chance and progress, never
its pixels, and imports no model.
"""

from .attention_guided import (
    FUSIONS,
    Attention,
    Collaborative,
    Fusion,
    Gaze,
    Guided,
    HardestFirst,
    Normalise,
    entropy,
    linear,
)
from .budget import DirichletBudget, Tasks, by_budget, log_dirichlet_draw
from .combinators import ByModality, Errors, IfSeen, RandomHeads
from .masker import Masker, Score, Uniform, floor, modality_queries, units_of
from .patterns import Block, Grid, InverseBlock
from .sampling import Draw, Gumbel, Hard, Hint, Noisy, Reversed

__all__ = [
    "FUSIONS",
    "Attention",
    "Block",
    "ByModality",
    "Collaborative",
    "DirichletBudget",
    "Draw",
    "Errors",
    "Fusion",
    "Gaze",
    "Grid",
    "Guided",
    "Gumbel",
    "Hard",
    "HardestFirst",
    "Hint",
    "IfSeen",
    "InverseBlock",
    "Masker",
    "Noisy",
    "Normalise",
    "RandomHeads",
    "Reversed",
    "Score",
    "Tasks",
    "Uniform",
    "by_budget",
    "entropy",
    "floor",
    "linear",
    "log_dirichlet_draw",
    "modality_queries",
    "units_of",
]
