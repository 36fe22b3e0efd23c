"""Scores that are patterns: drawn from chance and the grid alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from ..types import Batch, Observations, Tokens
from .masker import TokenScore, Uniform


@dataclass(frozen=True)
class Grid:
    """A regular pattern: in every `stride` x `stride` cell the same places are hidden first, another draw per sample.

    At a quarter visible and a stride of 2 one token of every four is seen (MAE, figure 6; CrossMAE, table 15).
    """

    stride: int = 2

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        rows, columns = tokens.layout.grid
        places = batch.rng.uniform("grid", self.stride**2).argsort(dim=1).argsort(dim=1)
        tiles = (-(-rows // self.stride), -(-columns // self.stride))
        pattern = repeat(places, "b (s t) -> b (h s) (w t)", s=self.stride, h=tiles[0], w=tiles[1])
        pattern = pattern[:, :rows, :columns].flatten(1).repeat(1, len(tokens.layout.spans))
        return pattern + batch.rng.uniform("ties", tokens.ids.shape[1])


@dataclass(frozen=True)
class Blockwise:
    """Random rectangles, one after another, are hidden whole (BEiT, arXiv 2106.08254, algorithm 1).

    A token's score is the order of the first of `count` rectangles that covers it, so every share of hidden tokens is
    met exactly. The rectangle that the share cuts is cut from one of its four sides, drawn per sample, so no side of
    the image is hidden more often; tokens that no rectangle covers follow in random order. Areas are shares of the
    grid.
    """

    area: tuple[float, float] = (0.08, 0.38)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    count: int = 32

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        rows, columns = tokens.layout.grid
        area, aspect, top, left = batch.rng.uniform("block", 4 * self.count).chunk(4, dim=1)  # each B count
        area = (self.area[0] + area * (self.area[1] - self.area[0])) * rows * columns
        low, high = (math.log(a) for a in self.aspect)
        aspect = (low + aspect * (high - low)).exp()
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        top = (top * (rows - height + 1)).floor()
        left = (left * (columns - width + 1)).floor()
        y = torch.arange(rows, device=top.device)
        x = torch.arange(columns, device=top.device)
        in_rows = (y >= top[..., None]) & (y < (top + height)[..., None])  # B count rows
        in_columns = (x >= left[..., None]) & (x < (left + width)[..., None])
        covered = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2)  # B count cells
        first = torch.where(covered.any(dim=1), covered.int().argmax(dim=1), self.count)
        cells = torch.arange(rows * columns, device=top.device)
        down, right = cells, cells % columns * rows + cells // columns
        sides = torch.stack([down, right, cells.flip(0), right.flip(0)]) / len(cells)  # 4 cells
        cut = sides[(4 * batch.rng.uniform("cut", 1)[:, 0]).long()]
        within = torch.where(first < self.count, cut, batch.rng.uniform("ties", len(cells)))
        return (-(first + within)).repeat(1, len(tokens.layout.spans))


@dataclass(frozen=True)
class InverseBlockwise:
    """Random rectangles stay visible and all around them is hidden (CAPI, arXiv 2502.08769, without its roll)."""

    block: Blockwise = field(default_factory=Blockwise)

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        return -self.block(tokens, observations, batch)


PATTERNS: dict[str, TokenScore] = {
    "uniform": Uniform(),
    "block": Blockwise(),
    "inverse-block": InverseBlockwise(),
    "grid": Grid(),
}


def pattern(masking: str | TokenScore) -> TokenScore:
    """The pattern of a name; a score stands for itself."""
    return PATTERNS[masking] if isinstance(masking, str) else masking
