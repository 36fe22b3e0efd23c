"""Heads from an encoder's tokens on their grid to numbers for every pixel: linear, and MultiMAE's of ConvNeXt blocks.

A head is made for `dim` channels of its maps (those of several inputs side by side), the encoder's `width` and
`outputs` numbers a pixel. `taps` says which blocks it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .dpt import DPTHead
from .upernet import UPerHead

HeadName = Literal["linear", "convnext", "upernet", "dpt"]
Size = tuple[int, int]
SPREAD = {16: 4, 64: 8}  # predictions of a patch, and of one of its sides


class Head(Protocol):
    """A module from maps to predictions at a size in pixels."""

    def __call__(self, maps: list[Float[Tensor, "B C h w"]], size: Size) -> Float[Tensor, "B K H W"]: ...


class LinearHead(nn.Module):
    """One linear layer on each token after a BatchNorm without affine, enlarged (bilinear): what tokens tell."""

    def __init__(self, dim: int, width: int, outputs: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, affine=False)
        self.project = nn.Conv2d(dim, outputs, 1)
        _small(self.project)

    def forward(self, maps: list[Float[Tensor, "B C h w"]], size: Size) -> Float[Tensor, "B K H W"]:
        return enlarged(self.project(self.norm(maps[-1])), size)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7 convolution, LayerNorm, an MLP of four times the width; no layer scale, as MultiMAE has it."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXtHead(nn.Module):
    """MultiMAE's head (arXiv 2204.01678, released code): each token becomes a square of finer ones, then four blocks.

    The square holds `spread` of them: 16 for classes and 64 for depth, with 384 and 96 channels at a width of 768.
    """

    def __init__(self, dim: int, width: int, outputs: int, spread: int = 16, depth: int = 4):
        super().__init__()
        self.side = SPREAD[spread]
        fine = max(8, 8 * width // spread)
        self.project = nn.Linear(dim, fine * spread)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(fine) for _ in range(depth)))
        self.predict = nn.Conv2d(fine, outputs, 1)
        self.apply(_small)

    def forward(self, maps: list[Float[Tensor, "B C h w"]], size: Size) -> Float[Tensor, "B K H W"]:
        x = self.project(maps[-1].permute(0, 2, 3, 1))
        x = rearrange(x, "b h w (c p q) -> b c (h p) (w q)", p=self.side, q=self.side)
        return enlarged(self.predict(self.blocks(x)), size)


def _small(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def enlarged(x: Float[Tensor, "B K h w"], size: Size) -> Float[Tensor, "B K H W"]:
    """Predictions at a size in pixels, bilinear."""
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


HEADS: dict[HeadName, Callable[[int, int, int], nn.Module]] = {
    "linear": LinearHead,
    "convnext": ConvNeXtHead,
    "upernet": UPerHead,
    "dpt": DPTHead,
}


def taps(head: HeadName, depth: int) -> Sequence[int]:
    """The blocks that a head reads, counted from 1: the last, or four at even distances (of 12: 3, 6, 9 and 12)."""
    return [depth] if head in ("linear", "convnext") else [max(1, round(depth * k / 4)) for k in (1, 2, 3, 4)]
