"""One ViT of which all public ones are configurations, and its use as a function of images.

Shapes: B batch, C channels, N patches, K all tokens, D width, F width of features, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..encoder import adapter
from ..image_encoder import FeatureExtractor, Readouts
from ..layers import (
    EPS,
    Block,
    Gated,
    Positions,
    ResizePositions,
    Rotation,
    by_name,
    check_heads,
    check_spec,
    in_order,
    initialise,
    mean_of_blocks,
    norm,
    observe_blocks,
    resized_table,
    sincos_positions,
    token,
)
from ..patches import patchify
from ..types import IMAGENET_MEAN, IMAGENET_STD, Batch, FeatureSpec, Layout, Modality, Observation, Pool

Activation = Literal["gelu", "gelu-tanh", "quick-gelu", "silu"]


@dataclass(frozen=True)
class ViTConfig:
    """What a public ViT is, and how its images are normalised (units of [0, 1] images).

    `grid` is that of the images it was trained on. `positions` are a learned table that is resized bicubically
    (`antialias` as its source does), rotations of queries and keys (DINOv3; `theta` is their base), or the sine-cosine
    table of our own encoders, for other sizes as `resize_positions` says. Without a class token all prefix tokens are
    registers. `final_norm` covers all tokens, the class token alone (CLIP) or is absent (CrossMAE, MultiMAE). `hidden`
    is the width inside an MLP, whose activation may gate a second projection (SwiGLU). `also` are maps that it reads
    beside images, each pixel's class a vector of `class_width` (MultiMAE).
    """

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    grid: tuple[int, int]
    channels: int = 3
    num_prefix: int = 1
    has_class_token: bool = True
    positions: Literal["table", "rotary", "sincos"] = "table"
    resize_positions: ResizePositions = "interpolate"
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
    also: tuple[Modality, ...] = ()
    class_width: int = 64

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"an encoder of {self.channels} channels needs as many means and stds; got {self.mean}, {self.std}; put"
                " its weights as model.safetensors or pytorch_model.bin in a folder with a preprocessor_config.json of"
                ' {"image_mean": [...], "image_std": [...]}, in units of [0, 1], and give that folder'
            )


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "quick-gelu": QuickGELU,
    "silu": nn.SiLU,
}


class ViT(nn.Module):
    """A plain ViT after its `ViTConfig`: normalised images -> R prefix tokens (the class token first), then patches.

    `prefix` holds the class and register tokens with their positions added.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config, self.resize_positions = config, config.resize_positions
        self.embed = nn.Linear(config.channels * config.patch**2, config.width)
        self.prefix = token(config.num_prefix, config.width)
        if config.positions == "table":
            self.table = token(*config.grid, config.width)
        elif config.positions == "sincos":
            self.waves = Positions(config.grid, config.width, config.resize_positions)
        self.norm_pre = norm(config.width, config.eps) if config.has_pre_norm else nn.Identity()
        activation = ACTIVATIONS[config.activation]()
        if config.is_gated:
            activation = Gated(activation)
        layer_scale = 1.0 if config.has_layer_scale else None
        shape = (config.width, config.heads, config.hidden, activation, layer_scale, config.eps)
        self.blocks = in_order(Block(*shape) for _ in range(config.depth))
        self.norm = nn.Identity() if config.final_norm == "none" else norm(config.width, config.eps)
        if config.projection:
            self.projection = nn.Linear(config.width, config.projection, bias=False)
        self.adapters = by_name(
            {m.name: adapter(m, config.patch, config.width, config.class_width) for m in config.also}
        )
        self.apply(initialise)

    def position_embedding(self, grid: tuple[int, int]) -> Float[Tensor, "N D"] | float:
        """Added to the patches of a grid: the table, resized for another grid than its own; 0 for rotary positions."""
        if self.config.positions == "rotary":
            return 0.0
        if self.config.positions == "sincos":
            return self.waves(grid)
        if grid == self.config.grid:
            return self.table.flatten(0, 1)
        if self.resize_positions == "extrapolate":
            return sincos_positions(grid, self.config.width).to(self.table)
        return resized_table(self.table, grid, self.config.antialias)

    def has_waves(self) -> bool:
        """Whether positions are sine and cosine waves: as such, or in a table of them, as MAE's files hold."""
        if self.config.positions != "table" or self.config.width % 4:
            return self.config.positions == "sincos"
        waves = sincos_positions(self.config.grid, self.config.width).to(self.table)
        return bool((waves - self.table.detach().flatten(0, 1)).abs().max() < 1e-4)

    def rotation(self, grid: tuple[int, int]) -> Rotation:
        """Cosines and sines of the angles of queries and keys, of a patch centre's row and column in [-1, 1]."""
        if self.config.positions != "rotary":
            return None
        device, quarter = self.prefix.device, self.config.width // self.config.heads // 4
        rows, columns = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in grid)
        centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # N 2
        frequencies = self.config.theta ** -(torch.arange(quarter, device=device) / quarter)
        angles = (2 * math.pi * centres[:, :, None] * frequencies).flatten(1).tile(2)  # N d
        return angles.cos(), angles.sin()

    def first_input(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K D"], Rotation]:
        """The input of the first block, K = R + N tokens, and the rotation of queries and keys in all blocks."""
        grid = images.shape[-2] // self.config.patch, images.shape[-1] // self.config.patch
        patches = self.embed(patchify(images, self.config.patch)) + self.position_embedding(grid)
        x = torch.cat([self.prefix.expand(images.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm_pre(x), self.rotation(grid)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K D"]:
        """Normalised images -> the outputs of the last block, after the final norm where that covers all tokens."""
        x, rotation = self.first_input(images)
        for block in self.blocks:
            x = block(x, None, None, rotation)
        return self.norm(x) if self.config.final_norm == "all" else x

    def features(self, maps: list[Float[Tensor, "B N D"]], spec: FeatureSpec) -> Float[Tensor, "B N F"]:
        """The mean of some blocks' outputs, each normalised, or sent through final norm and projection.

        One map takes the encoder's own final norm where that covers patches; all others are normalised without
        parameters, and so is one with `spec.norm` instance.
        """
        if spec.projected:
            return torch.stack([self.projection(self.norm(m)) for m in maps]).mean(dim=0)
        if len(maps) == 1 and self.config.final_norm == "all" and spec.norm == "layer":
            return self.norm(maps[0])
        return mean_of_blocks(maps, spec.norm)

    def check(self, spec: FeatureSpec) -> None:
        """Raise ValueError for layers, tokens or a projection that this ViT does not have."""
        num_class_tokens = min(self.config.num_prefix, self.config.has_class_token)
        check_spec(spec, self.config.depth, num_class_tokens, bool(self.config.projection))


class PublicViT(FeatureExtractor):
    """A public ViT as a feature extractor, with the normalisation that it was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: ViT, pool: Pool = "mean"):
        config = vit.config
        modality = Modality("rgb", config.channels, config.mean, config.std)
        super().__init__([modality, *config.also], config.patch, config.grid, pool)
        self.vit, self.config = vit, config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @property
    def trunk(self) -> ViT:
        return self.vit

    @property
    def has_class_token(self) -> bool:
        return self.num_prefix > 0 and self.config.has_class_token

    @property
    def resize_positions(self) -> ResizePositions:
        return self.vit.resize_positions

    def normalised(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Images as the ViT reads them. Raises ValueError where the patch does not divide them."""
        if images.shape[-2] % self.config.patch or images.shape[-1] % self.config.patch:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} are not divided by this encoder's patches of"
                f" {self.config.patch}; give another size, such as {self.image_size[0]} x {self.image_size[1]}"
            )
        return (images - self.mean) / self.std

    def observe(
        self, images: Float[Tensor, "B C H W"], grid: tuple[int, int], spec: FeatureSpec, modality: str = "rgb"
    ) -> Observation:
        """What `spec` reads of images that are resized to this grid of its patches; no further block is run."""
        self.vit.check(spec)
        fitted = resized(images, (grid[0] * self.config.patch, grid[1] * self.config.patch))
        x, rotation = self.vit.first_input(self.normalised(fitted))
        attention, maps = observe_blocks(self.blocks, x, spec, self.num_prefix, rotation=rotation)
        features, class_token = self.vit.features(maps, spec).float() if maps else None, None
        if features is not None and spec.class_token:
            class_token, features = features[:, 0], features[:, self.num_prefix :]
        layout = Layout({modality: slice(0, grid[0] * grid[1])}, grid)
        return Observation(layout, attention, features, class_token=class_token)

    def feature_dim(self, spec: FeatureSpec) -> int:
        return self.config.projection if spec.projected else self.config.width

    def observe_images(self, images: Float[Tensor, "B C H W"], spec: FeatureSpec) -> Observation:
        return self.observe(images, (images.shape[-2] // self.patch, images.shape[-1] // self.patch), spec)

    def readouts(self, batch: Batch, blocks: Sequence[int]) -> list[Readouts]:
        """The final norm is applied to the tokens that the public model applies it to; others, and blocks before the
        last, are normalised without parameters.
        """
        read = []
        for block, x in zip(blocks, self.tokens(batch, blocks), strict=True):
            own = self.config.final_norm if block == self.depth else "none"
            normed = self.vit.norm(x) if own == "all" else F.layer_norm(x, x.shape[-1:], eps=EPS)
            cls = self.vit.norm(x[:, 0]) if own == "cls" else normed[:, 0]
            read.append((cls, normed[:, self.num_prefix :]))
        return read

    def patch_input(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], Rotation]:
        x, rotation = self.vit.first_input(self.normalised(images))
        return x[:, self.num_prefix :], rotation

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        if "rgb" in batch.maps:
            x, rotation = self.vit.first_input(self.normalised(batch.maps["rgb"]))
        else:
            x, rotation = self.vit.prefix.expand(len(batch), -1, -1), None
        for m in (m for m in self.config.also if m.name in batch.maps):
            rows, columns = (side * m.stride // self.patch for side in batch.maps[m.name].shape[-2:])
            patches = self.vit.adapters[m.name](batch) + self.vit.position_embedding((rows, columns))
            x = torch.cat([x, patches.to(x.dtype)], dim=1)
        outputs = []
        for block in self.vit.blocks[: max(blocks)]:
            x = block(x, None, None, rotation)
            outputs.append(x)
        return [outputs[block - 1] for block in blocks]


def resized(images: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Images in [0, 1] at another size: bicubic, antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def untrained_vit(config: ViTConfig, seed: int, pool: Pool = "mean") -> PublicViT:
    """An encoder of this description with the weights of its initialisation; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PublicViT(ViT(config), pool)
