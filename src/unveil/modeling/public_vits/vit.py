"""One ViT that all public ones are cases of, described by a small record.

Shapes: B batch, C channels, N patches, K all tokens, R prefix tokens, Q queries, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..layers import EPS, ROWS, Positions, check_heads, in_order, initialise, token
from ..patches import patchify
from ..types import IMAGENET_MEAN, IMAGENET_STD, FeatureSpec

Activation = Literal["gelu", "gelu-tanh", "quick-gelu", "silu"]
Rotation = tuple[Float[Tensor, "N d"], Float[Tensor, "N d"]]  # cosines and sines of the angles of patches


@dataclass(frozen=True)
class ViTConfig:
    """What a public ViT is, and how its images are normalised (units of [0, 1] images).

    `grid` is that of the images it was trained on. `positions` are a learned table that is resized bicubically
    (`antialias` as its source does), rotations of queries and keys (DINOv3; `theta` is their base), or the sine-cosine
    table of our own encoders. `final_norm` covers all tokens, the class token alone (CLIP) or is not there (CrossMAE,
    MultiMAE). `hidden` is the width inside an MLP, whose activation may gate a second projection (SwiGLU).
    """

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    grid: tuple[int, int]
    channels: int = 3
    num_prefix: int = 1
    positions: Literal["table", "rotary", "sincos"] = "table"
    activation: Activation = "gelu"
    is_gated: bool = False
    has_pre_norm: bool = False
    has_layer_scale: bool = False
    final_norm: Literal["all", "cls", "none"] = "all"
    projection: int = 0
    eps: float = EPS
    antialias: bool = False
    theta: float = 100.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"an encoder of {self.channels} channels needs as many means and stds; got {self.mean}, {self.std}"
            )


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as some public models use it."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": gelu_tanh,
    "quick-gelu": quick_gelu,
    "silu": F.silu,
}


def rotate(x: Float[Tensor, "B H K d"], rotation: Rotation | None) -> Float[Tensor, "B H K d"]:
    """Queries or keys with those of the patches turned by their angles; prefix tokens have no place (DINOv3)."""
    if rotation is None:
        return x
    cos, sin = rotation
    prefix, patches = x.split([x.shape[-2] - len(cos), len(cos)], dim=-2)
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([prefix, turned.to(x.dtype)], dim=-2)


class Attention(nn.Module):
    """Multi-head self-attention, its queries and keys turned by their places where the encoder has rotary ones."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B K D"], rotation: Rotation | None) -> Float[Tensor, "B K D"]:
        q, k, v = (part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2))
        x = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v)
        return self.proj(x.transpose(1, 2).flatten(2))

    def attention_to_patches(
        self, x: Float[Tensor, "B K D"], query: str, num_prefix: int, rotation: Rotation | None
    ) -> Float[Tensor, "B H N"]:
        """The attention that patches get, head by head; `query` as in `FeatureSpec.attention`. No values are computed.

        Of all rows, some are computed at a time: the whole map would be the largest tensor of the step.
        """
        keys = rotate(self._part(x, 1), rotation)
        asking = self._part(x[:, :1], 0) if query == "cls" else rotate(self._part(x, 0), rotation)[:, :, num_prefix:]
        if query == "mean":
            asking = asking.mean(dim=2, keepdim=True)
        scale = keys.shape[-1] ** -0.5
        rows = [(q @ keys.mT * scale).float().softmax(dim=-1).sum(dim=2) for q in asking.split(ROWS, dim=2)]
        return torch.stack(rows).sum(dim=0)[:, :, num_prefix:] / asking.shape[2]

    def between_patches(
        self, x: Float[Tensor, "B K D"], num_prefix: int, rotation: Rotation | None
    ) -> Float[Tensor, "B H N N"]:
        """How much each patch attends to each patch, head by head."""
        asking, keys = (rotate(self._part(x, part), rotation) for part in (0, 1))
        scores = asking[:, :, num_prefix:] @ keys.mT * keys.shape[-1] ** -0.5
        return scores.float().softmax(dim=-1)[..., num_prefix:]

    def _part(self, x: Float[Tensor, "B K D"], part: int) -> Float[Tensor, "B H K d"]:
        """Queries (0) or keys (1) alone."""
        rows = slice(part * x.shape[-1], (part + 1) * x.shape[-1])
        return F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows]).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an activation between; gated, the first gives the gate and then what it gates."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.activate, self.is_gated = ACTIVATIONS[config.activation], config.is_gated
        self.fc1 = nn.Linear(config.width, config.hidden * (2 if config.is_gated else 1))
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        x = self.fc1(x)
        if self.is_gated:
            gate, x = x.chunk(2, dim=-1)
            return self.fc2(self.activate(gate) * x)
        return self.fc2(self.activate(x))


class Scale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT's layer scale)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block, with LayerScale where the model has it."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = Scale(config.width) if config.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)
        self.ls2 = Scale(config.width) if config.has_layer_scale else nn.Identity()

    def forward(self, x: Float[Tensor, "B K D"], rotation: Rotation | None) -> Float[Tensor, "B K D"]:
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """A plain ViT after its `ViTConfig`: normalised images -> R prefix tokens (the class token first), then patches.

    What a class or register token and its place add up to is one parameter, `prefix`.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.channels * config.patch**2, config.width)
        self.prefix = token(config.num_prefix, config.width)
        if config.positions == "table":
            self.table = token(*config.grid, config.width)
        elif config.positions == "sincos":
            self.waves = Positions(config.grid, config.width)
        self.norm_pre = nn.LayerNorm(config.width, eps=config.eps) if config.has_pre_norm else nn.Identity()
        self.blocks = in_order(Block(config) for _ in range(config.depth))
        self.norm = nn.Identity() if config.final_norm == "none" else nn.LayerNorm(config.width, eps=config.eps)
        if config.projection:
            self.projection = nn.Linear(config.width, config.projection, bias=False)
        self.apply(initialise)

    def places(self, grid: tuple[int, int]) -> Float[Tensor, "N D"] | float:
        """What is added to the patches of a grid: the table, resized where the grid is another; 0 for rotary ones."""
        if self.config.positions == "rotary":
            return 0.0
        if self.config.positions == "sincos":
            return self.waves(grid)
        if grid == self.config.grid:
            return self.table.flatten(0, 1)
        table = self.table.permute(2, 0, 1)[None].float()
        resized = F.interpolate(table, grid, mode="bicubic", align_corners=False, antialias=self.config.antialias)
        return resized[0].flatten(1).T

    def turns(self, grid: tuple[int, int]) -> Rotation | None:
        """Cosines and sines by which queries and keys are turned: row and column of a patch's centre in [-1, 1]."""
        if self.config.positions != "rotary":
            return None
        device, quarter = self.prefix.device, self.config.width // self.config.heads // 4
        rows, columns = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in grid)
        centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # N 2
        frequencies = self.config.theta ** -(torch.arange(quarter, device=device) / quarter)
        angles = (2 * math.pi * centres[:, :, None] * frequencies).flatten(1).tile(2)  # N d
        return angles.cos(), angles.sin()

    def begin(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K D"], Rotation | None]:
        """What the first block reads, and the turns of all blocks."""
        grid = images.shape[-2] // self.config.patch, images.shape[-1] // self.config.patch
        patches = self.embed(patchify(images, self.config.patch)) + self.places(grid)
        x = torch.cat([self.prefix.expand(len(images), -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm_pre(x), self.turns(grid)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K D"]:
        """Normalised images -> the last map, as its source hands it on: after the final norm where that covers it."""
        x, rotation = self.begin(images)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x) if self.config.final_norm == "all" else x

    def read(
        self, images: Float[Tensor, "B C H W"], spec: FeatureSpec
    ) -> tuple[Float[Tensor, "B heads N"] | None, Float[Tensor, "B K F"] | None]:
        """Attention and features of the patches; blocks are run only as far as the reading needs.

        Where the class token is read, all prefix tokens' features come before the patches'.
        """
        self.check(spec)
        depth, start = self.config.depth, self.config.num_prefix
        first = 0 if spec.class_token else start
        x, rotation = self.begin(images)
        attention, maps = None, []
        for index, block in enumerate(self.blocks):
            if index == spec.layer % depth and spec.attention is not None:
                attention = block.attn.attention_to_patches(block.norm1(x), spec.attention, start, rotation)
                if not spec.features:
                    break
            x = block(x, rotation)
            if index >= depth - spec.features:
                maps.append(x[:, first:])
        return attention, self.features(maps, spec.projected) if maps else None

    def features(self, maps: list[Float[Tensor, "B N D"]], projected: bool) -> Float[Tensor, "B N F"]:
        """The mean of some blocks' outputs, each normalised, or sent through final norm and projection.

        One map takes the encoder's own final norm where that covers patches; all others are normalised without
        parameters.
        """
        if projected:
            found = [self.projection(self.norm(m)) for m in maps]
        elif len(maps) == 1 and self.config.final_norm == "all":
            found = [self.norm(maps[0])]
        else:
            found = [F.layer_norm(m, m.shape[-1:], eps=EPS) for m in maps]
        return torch.stack(found).mean(dim=0) if len(found) > 1 else found[0]

    def check(self, spec: FeatureSpec) -> None:
        """Raise ValueError for a reading that this encoder has not."""
        depth = self.config.depth
        if not (-depth <= spec.layer < depth and 0 <= spec.features <= depth):
            raise ValueError(
                f"an encoder of {depth} blocks has layers from {-depth} to {depth - 1} and features of up to {depth}"
                f" blocks; got {spec.layer} and {spec.features}"
            )
        if spec.projected and not self.config.projection:
            raise ValueError("this encoder has no output projection to read features from; ask for projected=False")
        if spec.attention == "cls" and not self.config.num_prefix:
            raise ValueError("this encoder has no class token whose attention could be read; ask for mean or all")
        if spec.class_token and not self.config.num_prefix:
            raise ValueError("this encoder has no class token whose features could be read")
