"""Labels from frame to frame by the similarity of features: a few frames are remembered, whatever the video's length.

Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk", 2020, section 4, with the settings of Caron et
al., "Emerging Properties in Self-Supervised Vision Transformers" (DINO), 2021, section 4.2.2.

Shapes: H W cells of the grid of features, D their width, K labels (none first), S frames that are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ROWS, _COLUMNS = 6, 26  # of a tile: its products are matrices large enough, and few cells out of reach are multiplied


@dataclass(frozen=True)
class Propagation:
    """How labels are taken over.

    context: frames before the present one that are remembered, beside the first
    radius: cells up and down, left and right, within which similar ones are looked for
    neighbours: how many of the most similar cells, of all remembered frames together, give their labels
    temperature: that similarities are divided by before the softmax over these
    """

    context: int = 7
    radius: int = 12
    neighbours: int = 5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("context", 0), ("radius", 0), ("neighbours", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is a whole number of at least {least}; got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"--temperature is a number above 0; got {self.temperature}")


class _Tile(NamedTuple):
    """Cells whose labels are computed together, and the rows that are in reach; `far` is -inf for cells out of it."""

    rows: slice
    columns: slice
    reach: slice
    band: int
    far: Float[Tensor, "T R C"]


class Memory:
    """The remembered frames of one video: features of length 1 and soft labels of each cell.

    Similarities of a tile of cells are products with the columns in its reach alone, of which each frame is kept
    beforehand (a band of columns for each column of tiles), so nothing is copied for a product.
    """

    def __init__(self, grid: tuple[int, int], how: Propagation, device: torch.device):
        self.grid, self.how, self.device = grid, how, device
        width = grid[1]
        self.bands = [
            slice(max(0, start - how.radius), min(width, start + _COLUMNS + how.radius))
            for start in range(0, width, _COLUMNS)
        ]
        self.tiles = list(self._tiles())
        self.kept: list[Tensor] = []  # S H C D for each band
        self.labels = torch.empty(0)  # S H W K
        self.used = self.anchors = 0
        self.next = 0  # of the frames before the present one, the one that is written over

    def _tiles(self) -> Iterator[_Tile]:
        height, width = self.grid
        radius = self.how.radius
        for top in range(0, height, _ROWS):
            rows = slice(top, min(height, top + _ROWS))
            reach = slice(max(0, rows.start - radius), min(height, rows.stop + radius))
            for number, band in enumerate(self.bands):
                columns = slice(number * _COLUMNS, min(width, (number + 1) * _COLUMNS))
                down, across = (
                    (torch.arange(own.start, own.stop)[:, None] - torch.arange(there.start, there.stop)).abs() <= radius
                    for own, there in ((rows, reach), (columns, band))
                )
                near = (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)
                far = torch.zeros(near.shape).masked_fill(~near, -torch.inf)
                yield _Tile(rows, columns, reach, number, far.to(self.device))

    def remember(
        self, features: Float[Tensor, "H W D"], labels: Float[Tensor, "H W K"], is_anchor: bool = False
    ) -> None:
        """Keep a frame: for good where it `is_anchor`, such as the first, else until `context` others came after it."""
        if not is_anchor and not self.how.context:
            return
        if is_anchor:
            self._make_room(features.shape[-1], labels.shape[-1])
            slot, self.anchors = self.anchors, self.anchors + 1
        else:
            slot = self.anchors + self.next
            self.next = (self.next + 1) % self.how.context
        self.used = max(self.used, slot + 1)
        for kept, band in zip(self.kept, self.bands, strict=True):
            kept[slot] = features[:, band]
        self.labels[slot] = labels

    def _make_room(self, dim: int, num_labels: int) -> None:
        """One more slot before those of the frames that are forgotten again."""
        size, old, labels = self.anchors + 1 + self.how.context, self.kept, self.labels
        shapes = [(size, self.grid[0], band.stop - band.start, dim) for band in self.bands]
        self.kept = [torch.zeros(shape, device=self.device) for shape in shapes]
        self.labels = torch.zeros(size, *self.grid, num_labels, device=self.device)
        if self.anchors:
            for place, before in zip((*self.kept, self.labels), (*old, labels), strict=True):
                place[: self.anchors] = before[: self.anchors]
                place[self.anchors + 1 :] = before[self.anchors :]
            self.used += self.used > self.anchors

    def add_labels(self, count: int) -> None:
        """More labels, which no remembered frame has."""
        self.labels = F.pad(self.labels, (0, count))

    def propagate(self, features: Float[Tensor, "H W D"]) -> Float[Tensor, "H W K"]:
        """The soft labels of a frame, from the cells of the remembered ones that are most similar and in reach.

        They sum to 1 over labels. Features are of length 1.
        """
        result = self.labels.new_empty(*self.grid, self.labels.shape[-1])
        for tile in self.tiles:
            own = features[tile.rows, tile.columns].flatten(0, 1)
            kept = self.kept[tile.band][: self.used, tile.reach]  # S R C D
            cells = kept.flatten(1, 2)
            similar = torch.matmul(own, cells.mT)  # S T RC
            similar = similar.unflatten(2, kept.shape[1:3]).add_(tile.far)
            weights, places = self._most_similar(similar.transpose(0, 1))
            rows_of = kept.shape[1] * kept.shape[2]
            slot, rest = places // rows_of, places % rows_of
            row, column = rest // kept.shape[2] + tile.reach.start, rest % kept.shape[2] + self.bands[tile.band].start
            labels = self.labels[slot, row, column]  # T n K
            mixed = torch.einsum("tn,tnk->tk", weights, labels)
            shape = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start, -1)
            result[tile.rows, tile.columns] = mixed.view(shape)
        return result

    def _most_similar(self, similar: Float[Tensor, "T S R C"]) -> tuple[Float[Tensor, "T n"], Tensor]:
        """Softmax weights and places (in S R C) of the most similar cells.

        They lie in the rows with the highest maxima, so only those are sorted.
        """
        count = self.how.neighbours
        highest = similar.amax(3).flatten(1)
        _, rows = highest.topk(min(count, highest.shape[1]))
        width = similar.shape[3]
        own = torch.arange(len(similar), device=similar.device)[:, None]
        picked = similar[own, rows // similar.shape[2], rows % similar.shape[2]]  # T n C
        best, inside = picked.flatten(1).topk(min(count, picked.shape[1] * width))
        places = rows.gather(1, inside // width) * width + inside % width
        weights = F.softmax(best / self.how.temperature, dim=1)
        return weights, places
