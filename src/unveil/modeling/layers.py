"""Transformer layers: attention, MLP, pre-norm block, and where a token sits.

Shapes: B batch, N tokens, Q queries, K keys, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Keys = Bool[Tensor, "B N"] | None  # which tokens may be read; None for all

EPS = 1e-6  # LayerNorm's, in every paper here
ROWS = 64  # of attention that are computed at once


def in_order(modules: Iterable[M]) -> Sequence[M]:
    """A ModuleList that remembers what it holds."""
    return cast("Sequence[M]", nn.ModuleList(modules))


def by_name(modules: Mapping[str, M]) -> Mapping[str, M]:
    """A ModuleDict that remembers what it holds."""
    return cast("Mapping[str, M]", nn.ModuleDict(dict(modules)))


def norm(dim: int) -> nn.LayerNorm:
    """LayerNorm as ViTs of this field use it."""
    return nn.LayerNorm(dim, eps=EPS)


def check_heads(dim: int, heads: int) -> None:
    """Raise ValueError where heads do not share a width evenly."""
    if dim < 1 or heads < 1 or dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}; use a number of heads that does")


class Attention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"], keys: Keys = None, last: int | None = None) -> Float[Tensor, "B Q D"]:
        """What each token reads; with `last` that of the last so many alone: the others ask nothing."""
        if last is None:
            q, k, v = (part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2))
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            (to_q, to_kv), (q_bias, kv_bias) = self.qkv.weight.split(sizes), self.qkv.bias.split(sizes)
            q = F.linear(x[:, -last:], to_q, q_bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, to_kv, kv_bias).unflatten(-1, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if keys is None else keys[:, None, None])
        return self.proj(x.transpose(1, 2).flatten(2))

    def rows(
        self, x: Float[Tensor, "B N D"], asking: Float[Tensor, "B Q D"], keys: Keys = None
    ) -> Float[Tensor, "B H Q N"]:
        """How much a few queries, computed from `asking`, attend to each of x: never the whole N x N map."""
        dim = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(asking, weight[:dim], bias[:dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = F.linear(x, weight[dim : 2 * dim], bias[dim : 2 * dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).float()
        if keys is not None:
            scores = scores.masked_fill(~keys[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)

    def attention_to_patches(
        self, x: Float[Tensor, "B N D"], query: str, num_prefix: int, keys: Keys = None
    ) -> Float[Tensor, "B H M"]:
        """The attention that the tokens after the prefix get, head by head; `query` as in `FeatureSpec.attention`."""
        tokens = x[:, num_prefix:]
        there = tokens.new_ones(tokens.shape[:2]) if keys is None else keys[:, num_prefix:].to(tokens.dtype)  # B M
        share = there / there.sum(dim=1, keepdim=True)
        if query == "all":  # some rows at a time: the map of all of them would be the largest tensor of the step
            parts = zip(tokens.split(ROWS, dim=1), share.split(ROWS, dim=1), strict=True)
            rows = torch.stack([torch.einsum("bhqn,bq->bhn", self.rows(x, p, keys), s.float()) for p, s in parts])
            rows = rows.sum(dim=0)
        else:
            rows = self.rows(x, x[:, :1] if query == "cls" else share[:, None] @ tokens, keys)[:, :, 0]
        return rows[:, :, num_prefix:]


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a context of another width."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B Q D"], context: Float[Tensor, "B K C"]) -> Float[Tensor, "B Q D"]:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (part.transpose(1, 2) for part in self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Block(nn.Module):
    """Pre-norm transformer block over one sequence."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "B N D"], keys: Keys = None, last: int | None = None) -> Float[Tensor, "B Q D"]:
        """The tokens as the block leaves them; with `last` the last so many alone, which read all."""
        read = self.attn(self.norm1(x), keys, last)
        x = (x if last is None else x[:, -last:]) + read
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Pre-norm block whose queries read a context; with `self_attention` they first read one another.

    CrossMAE (arXiv 2401.14391), section 3.2 and, for the self-attention ablation, appendix A.4.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, self_attention: bool = False, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm0 = norm(dim) if self_attention else None
        self.self_attn = Attention(dim, heads) if self_attention else None
        self.norm1 = norm(dim)
        self.cross_attn = CrossAttention(dim, heads, context_dim)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "B Q D"], context: Float[Tensor, "B K C"]) -> Float[Tensor, "B Q D"]:
        if self.self_attn is not None and self.norm0 is not None:
            x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Fixed 2-D sine-cosine embedding of a grid in raster order; the first half encodes x, the second y (MAE)."""
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides; got {dim}")
    height, width = grid
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


class Positions(nn.Module):
    """The sine-cosine table of a grid, looked up by cell. Another grid than the usual one is computed when asked."""

    table: Tensor

    def __init__(self, grid: tuple[int, int], dim: int):
        super().__init__()
        self.grid, self.dim = grid, dim
        self.register_buffer("table", sincos_positions(grid, dim), persistent=False)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        return self.table if grid == self.grid else sincos_positions(grid, self.dim).to(self.table)


def initialise(module: nn.Module) -> None:
    """MAE's initialisation, for `apply`: Xavier-uniform weights (a fused projection counts as one), zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def token(*shape: int) -> nn.Parameter:
    """A learned token, as MAE draws it: normal with a standard deviation of 0.02."""
    return nn.Parameter(0.02 * torch.randn(*shape))
