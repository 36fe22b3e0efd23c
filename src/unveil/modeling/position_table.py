"""Positions that are a table in the checkpoint, as most public ViTs have them: learned, or fixed as they were given."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .layers import Positions, ResizePositions, resized_table, sincos_positions, token

PositionKind = Literal["sincos", "learned", "fixed"]
TABLE = "encoder.positions.table"  # its name among the weights of a model


class PositionTable(nn.Module):
    """A table of positions, h w D, that is part of the weights; for another grid it is interpolated bicubically.

    A `learned` one is trained and begins with small random numbers, a fixed one is not and begins as sines and cosines.
    """

    table: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, learned: bool):
        super().__init__()
        self.learned = learned
        self.resize: ResizePositions = "interpolate"
        if learned:
            self.table = token(*grid, dim)
        else:
            self.register_buffer("table", sincos_positions(grid, dim).unflatten(0, grid))

    @property
    def grid(self) -> tuple[int, int]:
        return self.table.shape[0], self.table.shape[1]

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        if grid == self.grid:
            return self.table.flatten(0, 1)
        return resized_table(self.table, grid).to(self.table.dtype)

    @torch.no_grad()
    def set_grid(self, grid: tuple[int, int]) -> None:
        """Make it the table of another grid."""
        self.table.data = self(grid).unflatten(0, grid).contiguous()


def make_positions(
    kind: PositionKind, grid: tuple[int, int], dim: int, resize: ResizePositions
) -> Positions | PositionTable:
    """The positions of a kind. Raises ValueError for an unknown kind, and for a table that is to be extrapolated."""
    if kind == "sincos":
        return Positions(grid, dim, resize)
    if kind not in ("learned", "fixed"):
        raise ValueError(f"encoder_positions must be one of sincos, learned, fixed; got {kind!r}")
    if resize != "interpolate":
        raise ValueError(
            f"encoder_positions={kind} is a table, which can only be interpolated; resize_positions={resize} goes with"
            " sincos"
        )
    return PositionTable(grid, dim, learned=kind == "learned")


def position_kind(positions: nn.Module) -> PositionKind:
    """The kind of an encoder's positions."""
    if isinstance(positions, PositionTable):
        return "learned" if positions.learned else "fixed"
    return "sincos"
