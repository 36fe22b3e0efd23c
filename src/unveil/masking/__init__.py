"""Masking: which tokens are hidden, which are asked for.

A score is `(Tokens, Observations, Batch) -> B N`, high = hide first. It reads the batch's chance and progress, never
its pixels, and imports no model.
"""

from .attention import (
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
from .drawing import Draw, Gumbel, Hard, Hint, Noisy, Reversed
from .masker import Masker, Score, Uniform, ask, floor, units_of
from .patterns import Block, Grid, InverseBlock

__all__ = [
    "FUSIONS",
    "Attention",
    "Block",
    "Collaborative",
    "Draw",
    "Fusion",
    "Gaze",
    "Grid",
    "Guided",
    "Gumbel",
    "Hard",
    "HardestFirst",
    "Hint",
    "InverseBlock",
    "Masker",
    "Noisy",
    "Normalise",
    "Reversed",
    "Score",
    "Uniform",
    "ask",
    "entropy",
    "floor",
    "linear",
    "units_of",
]
