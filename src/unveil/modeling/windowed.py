"""A plain ViT for large images, as ViTDet uses it: attention inside windows, and in a few blocks over the whole image.

Li et al., 2022 (arXiv 2203.16527), section 3 and appendix A.1.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .image_encoder import FeatureExtractor
from .layers import Attention, Positions, ResizePositions, Rotation, attend, rotate

Pads = tuple[int, int, int, int]


class RelativePositions(nn.Module):
    """What is added to the attention of two tokens by the distance of their rows and of their columns, from 0 on.

    Each distance has a vector that is multiplied by the query (MViTv2, equation 4). `grid`
    is that of the tokens that attend to one another.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int):
        super().__init__()
        self.grid = grid
        self.rows, self.columns = (nn.Parameter(torch.zeros(2 * side - 1, head_dim)) for side in grid)

    def forward(self, q: Float[Tensor, "B H N d"]) -> Float[Tensor, "B H N N"]:
        height, width = self.grid
        queries = q.unflatten(2, self.grid)
        by_row = torch.einsum("bhijd,ikd->bhijk", queries, self._between(self.rows, height).to(q.dtype))
        by_column = torch.einsum("bhijd,jkd->bhijk", queries, self._between(self.columns, width).to(q.dtype))
        bias = by_row[..., :, None] + by_column[..., None, :]
        return bias.flatten(4).flatten(2, 3)

    def _between(self, table: Tensor, side: int) -> Float[Tensor, "{side} {side} d"]:
        places = torch.arange(side, device=table.device)
        return table[places[:, None] - places + side - 1]


class WindowedViT(nn.Module):
    """A copy of an encoder that reads images as a map: no prefix tokens, no final norm, attention in windows.

    `window` is the side of a window in tokens; a map that it does not divide is padded, as the paper's code does it,
    with zeros that are attended to. The blocks `whole`, counted from 1, attend over the whole image. `positions` says
    how positions of another grid are made, None as the encoder does. With `relative`, the grid of the images, each
    block has relative positions that begin as zeros. Raises ValueError for positions that cannot go on beyond theirs.
    """

    def __init__(
        self,
        encoder: FeatureExtractor,
        window: int,
        whole: Collection[int],
        positions: ResizePositions | None = None,
        relative: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.encoder, self.window, self.whole = copy.deepcopy(encoder), window, frozenset(whole)
        tables = [module for module in self.encoder.modules() if isinstance(module, Positions)]
        if positions == "extrapolate" and not tables and self.encoder.resize_positions != "extrapolate":
            raise ValueError(
                "this encoder has no sine-cosine positions, which alone go on; give --positions interpolate"
            )
        for table in tables:
            table.resize = positions or table.resize
        self.relative: Sequence[RelativePositions] | None = None
        if relative is not None:
            head_dim = encoder.dim // cast("Attention", encoder.blocks[0].attn).heads
            grids = [relative if k in self.whole else (window, window) for k in range(1, self.depth + 1)]
            made = nn.ModuleList(RelativePositions(grid, head_dim) for grid in grids)
            self.relative = cast("Sequence[RelativePositions]", made)

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def depth(self) -> int:
        return self.encoder.depth

    @property
    def patch(self) -> int:
        return self.encoder.patch

    def layer_of(self, name: str) -> int:
        """The layer of a parameter: that of the encoder, and of relative positions that of their block."""
        part, _, rest = name.partition(".")
        return self.encoder.layer_of(rest) if part == "encoder" else int(rest.split(".")[0]) + 1

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Of each block, the modules whose outputs are added to its input."""
        return self.encoder.branches()

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The last map of images in [0, 1]."""
        grid = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        x, rotation = self.encoder.patch_input(images)
        for k, block in enumerate(self.encoder.blocks, start=1):
            window = grid if k in self.whole else (self.window, self.window)
            relative = None if self.relative is None else self.relative[k - 1]
            x = x + block.ls1(windowed(block.attn, block.norm1(x), grid, window, rotation, relative))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return x.mT.unflatten(2, grid)


def windowed(
    attention: Attention,
    x: Float[Tensor, "B N D"],
    grid: tuple[int, int],
    window: tuple[int, int],
    rotation: Rotation = None,
    relative: RelativePositions | None = None,
) -> Float[Tensor, "B N D"]:
    """Attention of the tokens of a grid inside windows of this size."""
    below, right = (-side % step for side, step in zip(grid, window, strict=True))
    padded = grid[0] + below, grid[1] + right
    maps = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, below))
    q, k, v = attention.qkv(maps.flatten(1, 2)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    if rotation is not None:
        angles = (_angles(rotation[0], grid, padded, 1.0), _angles(rotation[1], grid, padded, 0.0))
        q, k = rotate(q, angles), rotate(k, angles)
    q, k, v = (_cut(each, padded, window) for each in (q, k, v))
    out = attend(q, k, v) if relative is None else F.scaled_dot_product_attention(q, k, v, attn_mask=relative(q))
    rows, columns = (side // step for side, step in zip(padded, window, strict=True))
    out = out.transpose(1, 2).flatten(2)  # windows, tokens, D
    out = out.unflatten(1, window).unflatten(0, (len(x), rows, columns)).permute(0, 1, 3, 2, 4, 5)
    out = out.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]].flatten(1, 2)
    return attention.proj(out)


def _angles(values: Tensor, grid: tuple[int, int], padded: tuple[int, int], fill: float) -> Float[Tensor, "N d"]:
    right, below = padded[1] - grid[1], padded[0] - grid[0]
    return F.pad(values.unflatten(0, grid), (0, 0, 0, right, 0, below), value=fill).flatten(0, 1)


def _cut(x: Float[Tensor, "B H N d"], padded: tuple[int, int], window: tuple[int, int]) -> Float[Tensor, "W H M d"]:
    """Windows of all images, one after another, as samples of their own."""
    rows, columns = (side // step for side, step in zip(padded, window, strict=True))
    maps = x.unflatten(2, (rows, window[0], columns, window[1]))  # B H rows y columns x d
    return maps.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)
