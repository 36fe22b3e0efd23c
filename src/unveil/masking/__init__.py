"""Masking: which tokens are hidden, which are asked for.

A score is `(Tokens, Observations, Batch) -> B N`, high = hide first. It reads the batch's chance and progress, never
its pixels, and imports no model.
"""

from .masker import Masker, Score, Uniform, ask, floor, units_of
from .patterns import Block, Grid, InverseBlock

__all__ = ["Block", "Grid", "InverseBlock", "Masker", "Score", "Uniform", "ask", "floor", "units_of"]
