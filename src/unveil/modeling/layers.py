"""Transformer layers: attention, MLP, pre-norm block, and where a token sits.

Shapes: B batch, N tokens, M of them after the prefix, Q queries, K keys, D width, H heads, d width of a head, E and F
widths inside an MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .types import FeatureSpec

M = TypeVar("M", bound=nn.Module)
Keys = Bool[Tensor, "B N"] | None  # which tokens may be attended to; None for all
Rotation = tuple[Float[Tensor, "M d"], Float[Tensor, "M d"]] | None  # cosines and sines of the angles of the patches

EPS = 1e-6  # of LayerNorm, in every paper here
ROWS = 64  # rows of attention that are computed at once
SHORT = 512  # keys up to which attention in bf16 on a CPU is two matrix products


def in_order(modules: Iterable[M]) -> Sequence[M]:
    """A ModuleList that remembers what it holds."""
    return cast("Sequence[M]", nn.ModuleList(modules))


def by_name(modules: Mapping[str, M]) -> Mapping[str, M]:
    """A ModuleDict that remembers what it holds."""
    return cast("Mapping[str, M]", nn.ModuleDict(dict(modules)))


def norm(dim: int, eps: float = EPS) -> nn.LayerNorm:
    """A LayerNorm with the epsilon that the papers of this field use."""
    return nn.LayerNorm(dim, eps=eps)


def check_heads(dim: int, heads: int) -> None:
    """Raise ValueError where heads do not share a width evenly."""
    if dim < 1 or heads < 1 or dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}; use a number of heads that does")


def rotate(x: Float[Tensor, "B H K d"], rotation: Rotation) -> Float[Tensor, "B H K d"]:
    """Rotary positions: queries or keys of patches rotated by their angles, prefix tokens as they are (DINOv3)."""
    if rotation is None:
        return x
    cos, sin = rotation
    prefix, patches = x.split([x.shape[-2] - len(cos), len(cos)], dim=-2)
    left, right = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([prefix, rotated.to(x.dtype)], dim=-2)


def attend(
    q: Float[Tensor, "B H Q d"], k: Float[Tensor, "B H N d"], v: Float[Tensor, "B H N d"], keys: Keys = None
) -> Float[Tensor, "B H Q d"]:
    """Scaled dot-product attention, by the backend that is fastest for the device and type.

    PyTorch's fused kernel, except in bf16 on a CPU: up to some hundred keys its backward pass takes 2 to 10 times as
    long there as the two matrix products and the softmax written out, and its forward pass up to 1.8 times. Beyond
    that the fused kernel saves the memory of the whole map. Both agree within the rounding of bf16.
    """
    mask = None if keys is None else keys[:, None, None]
    if not writes_out_attention(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ v


def writes_out_attention(q: Tensor, k: Tensor) -> bool:
    """Whether `attend` multiplies these queries and keys as plain matrices: of what is trained or evaluated.

    A frozen teacher of a training (`no_grad`) keeps the fused kernel, so that its targets keep their roundings.
    """
    is_trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    is_evaluated = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()  # which no graph can ask
    return (
        (is_trained or is_evaluated) and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT
    )


class Attention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection, and rotary positions where a ViT has them.

    Raises ValueError where the number of heads does not divide the width.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B N D"], keys: Keys = None, last: int | None = None, rotation: Rotation = None
    ) -> Float[Tensor, "B Q D"]:
        """The output of every token, or, with `last`, of the last so many alone (without rotary positions)."""
        if last is None:
            q, k, v = (y.transpose(1, 2) for y in self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2))
            q, k = rotate(q, rotation), rotate(k, rotation)
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            (to_q, to_kv), (q_bias, kv_bias) = self.qkv.weight.split(sizes), self.qkv.bias.split(sizes)
            q = F.linear(x[:, -last:], to_q, q_bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, to_kv, kv_bias).unflatten(-1, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        x = attend(q, k, v, keys)
        return self.proj(x.transpose(1, 2).flatten(2))

    def rows(
        self, x: Float[Tensor, "B N D"], sources: Float[Tensor, "B Q D"], keys: Keys = None
    ) -> Float[Tensor, "B H Q N"]:
        """How much a few queries, computed from `sources`, attend to each of x: never the whole N x N map."""
        return self._weights(self._project(sources, 0), self._project(x, 1), keys)

    def between_patches(
        self, x: Float[Tensor, "B N D"], num_prefix: int, rotation: Rotation = None
    ) -> Float[Tensor, "B H M M"]:
        """How much each of the M tokens after the prefix attends to each of them."""
        q, k = (rotate(self._project(x, index), rotation) for index in (0, 1))
        return self._weights(q[:, :, num_prefix:], k)[..., num_prefix:]

    def attention_to_patches(
        self, x: Float[Tensor, "B N D"], query: str, num_prefix: int, keys: Keys = None, rotation: Rotation = None
    ) -> Float[Tensor, "B H M"]:
        """The attention that the M tokens after the prefix get, by head; `query` as in `FeatureSpec.attention`."""
        tokens, k = x[:, num_prefix:], rotate(self._project(x, 1), rotation)
        is_read = tokens.new_ones(tokens.shape[:2]) if keys is None else keys[:, num_prefix:].to(tokens.dtype)
        share = is_read / is_read.sum(dim=1, keepdim=True)  # B M: the weight of each query in the mean

        if query == "all":  # some rows at a time: the map of all of them would be the largest tensor of the step
            total = []
            for chunk in (slice(start, start + ROWS) for start in range(0, tokens.shape[1], ROWS)):
                rows = self._weights(self._patch_queries(tokens, chunk, rotation), k, keys)  # B H Q N
                total.append(torch.einsum("bhqn,bq->bhn", rows, share[:, chunk].float()))
            return torch.stack(total).sum(dim=0)[:, :, num_prefix:]
        if query == "cls":
            q = self._project(x[:, :1], 0)
        else:
            q = self._patch_queries(tokens, slice(None), rotation)
            q = q.mean(dim=2, keepdim=True) if keys is None else share[:, None, None] @ q
        return self._weights(q, k, keys)[:, :, 0, num_prefix:]

    def _project(self, x: Float[Tensor, "B K D"], index: int) -> Float[Tensor, "B H K d"]:
        """Queries (index 0) or keys (1) alone: no values are computed."""
        rows = slice(index * x.shape[-1], (index + 1) * x.shape[-1])
        return F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows]).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _patch_queries(
        self, tokens: Float[Tensor, "B M D"], chunk: slice, rotation: Rotation
    ) -> Float[Tensor, "B H Q d"]:
        angles = None if rotation is None else (rotation[0][chunk], rotation[1][chunk])
        return rotate(self._project(tokens[:, chunk], 0), angles)

    def _weights(
        self, q: Float[Tensor, "B H Q d"], k: Float[Tensor, "B H N d"], keys: Keys = None
    ) -> Float[Tensor, "B H Q N"]:
        scores = (q @ k.mT / q.shape[-1] ** 0.5).float()
        if keys is not None:
            scores = scores.masked_fill(~keys[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)


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
        k, v = (y.transpose(1, 2) for y in self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2))
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """An activation of the first half of the channels that multiplies the second half (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N F"]:
        gate, x = x.chunk(2, dim=-1)
        return self.activation(gate) * x


class Mlp(nn.Sequential):
    """Two linear layers with an activation between, a GELU by default; `hidden` is the width of the second's input."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module | None = None):
        widths = hidden * (2 if isinstance(activation, Gated) else 1)
        super().__init__(nn.Linear(dim, widths), activation or nn.GELU(), nn.Linear(hidden, dim))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch, the same at first (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, first: float = 1.0):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), first))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block over one sequence. Its MLP is 4 times as wide as its input by default."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int | None = None,
        activation: nn.Module | None = None,
        layer_scale: float | None = None,
        eps: float = EPS,
    ):
        super().__init__()
        self.norm1 = norm(dim, eps)
        self.attn = Attention(dim, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = norm(dim, eps)
        self.mlp = Mlp(dim, hidden or 4 * dim, activation)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self, x: Float[Tensor, "B N D"], keys: Keys = None, last: int | None = None, rotation: Rotation = None
    ) -> Float[Tensor, "B Q D"]:
        """The outputs of all tokens, or, with `last`, of the last so many alone: they attend to all."""
        attended = self.ls1(self.attn(self.norm1(x), keys, last, rotation))
        x = (x if last is None else x[:, -last:]) + attended
        return x + self.ls2(self.mlp(self.norm2(x)))

    def attention_to_patches(self, x: Float[Tensor, "B N D"], *how: Any) -> Float[Tensor, "B H M"]:
        """What `Attention.attention_to_patches` gives for the input of this block."""
        return self.attn.attention_to_patches(self.norm1(x), *how)


class CrossBlock(nn.Module):
    """Pre-norm block whose queries read a context; with `self_attention` they first read one another.

    CrossMAE (arXiv 2401.14391), section 3.2 and, for the self-attention ablation, appendix A.4.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, self_attention: bool = False):
        super().__init__()
        self.norm0 = norm(dim) if self_attention else None
        self.self_attn = Attention(dim, heads) if self_attention else None
        self.norm1 = norm(dim)
        self.cross_attn = CrossAttention(dim, heads, context_dim)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "B Q D"], context: Float[Tensor, "B K C"]) -> Float[Tensor, "B Q D"]:
        if self.self_attn is not None and self.norm0 is not None:
            x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))


def check_spec(spec: FeatureSpec, depth: int, num_prefix: int, has_projection: bool = False) -> None:
    """Raise ValueError for layers, tokens or a projection that an encoder does not have."""
    if not (-depth <= spec.layer < depth and 0 <= spec.features <= depth):
        raise ValueError(
            f"an encoder of {depth} blocks has layers from {-depth} to {depth - 1} and features of up to {depth}"
            f" blocks; got {spec.layer} and {spec.features}"
        )
    if spec.projected and not has_projection:
        raise ValueError("this encoder has no output projection to read features from; use projected=False")
    if spec.attention == "cls" and not num_prefix:
        raise ValueError("this encoder has no class token whose attention could be read; use mean or all")
    if spec.class_token and not num_prefix:
        raise ValueError("this encoder has no class token whose features could be read")


def observe_blocks(
    blocks: Sequence[Block],
    x: Float[Tensor, "B N D"],
    spec: FeatureSpec,
    num_prefix: int,
    keys: Keys = None,
    rotation: Rotation = None,
) -> tuple[Float[Tensor, "B H M"] | None, list[Tensor]]:
    """The attention of one block, and the outputs (B M D) of the last ones; no block is run that neither needs.

    With `spec.class_token` the outputs have the prefix tokens before the M others.
    """
    depth, first = len(blocks), 0 if spec.class_token else num_prefix
    attention, outputs = None, []
    for index, block in enumerate(blocks):
        if index == spec.layer % depth and spec.attention is not None:
            attention = block.attention_to_patches(x, spec.attention, num_prefix, keys, rotation)
            if not spec.features:
                break
        x = block(x, keys, None, rotation)
        if index >= depth - spec.features:
            outputs.append(x[:, first:])
    return attention, outputs


def mean_of_blocks(outputs: Sequence[Float[Tensor, "B N D"]], kind: str = "layer") -> Float[Tensor, "B N D"]:
    """The mean of some blocks' outputs, each normalised as `FeatureSpec.norm` says, without parameters."""
    if kind == "instance":
        return torch.stack([F.instance_norm(y.float().mT).mT for y in outputs]).mean(dim=0)
    return torch.stack([F.layer_norm(y, y.shape[-1:], eps=EPS) for y in outputs]).mean(dim=0)


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Fixed 2-D sine-cosine embedding of a grid in raster order; the first half encodes x, the second y (MAE)."""
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides; got {dim}")
    height, width = grid
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def resized_table(
    table: Float[Tensor, "h w D"], grid: tuple[int, int], antialias: bool = False
) -> Float[Tensor, "N D"]:
    """A table of positions at another grid, in raster order: bicubic."""
    maps = table.permute(2, 0, 1)[None].float()
    return F.interpolate(maps, grid, mode="bicubic", align_corners=False, antialias=antialias)[0].flatten(1).T


ResizePositions = Literal["interpolate", "extrapolate"]


class Positions(nn.Module):
    """The sine-cosine table of a grid, looked up by cell.

    For another grid the table is interpolated bicubically, as MAE's and MultiMAE's code do for other resolutions, so
    that the places keep the range that was trained; or the waves go on beyond it (`extrapolate`).
    """

    table: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, resize: ResizePositions = "interpolate"):
        super().__init__()
        self.grid, self.dim, self.resize = grid, dim, resize
        self.register_buffer("table", sincos_positions(grid, dim), persistent=False)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        if grid == self.grid:
            return self.table
        if self.resize == "extrapolate":
            return sincos_positions(grid, self.dim).to(self.table)
        return resized_table(self.table.unflatten(0, self.grid), grid)


def initialise(module: nn.Module) -> None:
    """MAE's initialisation, for `apply`: Xavier-uniform weights (a fused projection counts as one), zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


QkvInit = Literal["fused", "separate"]


def fused_projections(model: nn.Module) -> Iterator[tuple[nn.Linear, int]]:
    """The linear layers whose weight is several matrices, one below another, and how many: q, k and v, or k and v."""
    for module in model.modules():
        for name, matrices in (("qkv", 3), ("kv", 2)):
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear):
                yield layer, matrices


@torch.no_grad()
def separate_qkv(model: nn.Module) -> None:
    """First weights of queries, keys and values as those of a matrix each (MultiMAE's released code).

    Xavier's bound depends on the outputs of a layer, of which a fused projection has three times or twice as many.
    """
    for layer, matrices in fused_projections(model):
        ins, outs = layer.in_features, layer.out_features
        layer.weight.mul_(((ins + outs) / (ins + outs // matrices)) ** 0.5)


def token(*shape: int) -> nn.Parameter:
    """A learned token, as MAE draws it: normal with a standard deviation of 0.02."""
    return nn.Parameter(0.02 * torch.randn(*shape))
