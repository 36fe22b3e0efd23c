"""Heads from an encoder's tokens on their grid to numbers for every pixel: linear, MultiMAE's, UPerNet, DPT.

A head is made for `dim` channels of its maps (those of several inputs side by side), the encoder's `width` and
`outputs` numbers a pixel. `taps` says which blocks it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.rng import SampleRng

POOLS = (1, 2, 3, 6)
AUXILIARY, AUXILIARY_WIDTH = 0.4, 256  # of the auxiliary head's loss; channels of its one convolution
PROPORTIONED = 12  # blocks of the encoders for which published numbers of blocks are


class UPerHead(nn.Module):
    """UPerNet (Xiao et al., 2018) as MAE fine-tunes it: four blocks' maps at 4, 2, 1 and 1/2 times the grid, the
    coarsest pooled over regions, added up from coarse to fine, and joined; all convolutions are `width` wide.

    Its auxiliary head (one convolution and a classifier on the third map, as in the public configurations) answers
    while it learns."""

    def __init__(self, dim: int, width: int, outputs: int):
        super().__init__()
        finest = nn.Sequential(_double(dim), nn.BatchNorm2d(dim), nn.GELU(), _double(dim))
        self.resize = nn.ModuleList([finest, _double(dim), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])
        self.pooled = nn.ModuleList(_convolved(dim, width, 1) for _ in POOLS)
        self.regions = _convolved(dim + len(POOLS) * width, width, 3)
        self.lateral = nn.ModuleList(_convolved(dim, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolved(width, width, 3) for _ in range(3))
        self.join = _convolved(4 * width, width, 3)
        self.predict = nn.Conv2d(width, outputs, 1)
        self.auxiliary = nn.Sequential(_convolved(dim, AUXILIARY_WIDTH, 3), nn.Conv2d(AUXILIARY_WIDTH, outputs, 1))

    def learned_from(
        self, maps: list[Float[Tensor, "B C h w"]], size: tuple[int, int], dropout: float, rng: SampleRng
    ) -> list[tuple[float, Float[Tensor, "B K H W"]]]:
        """Both predictions, each with the weight of its loss and with a share of the last channels left out."""
        convolve, predict = self.auxiliary
        return [
            (1.0, self._predicted(_dropped(self._joined(maps), dropout, rng, "head dropout"), size)),
            (AUXILIARY, enlarged(predict(_dropped(convolve(maps[2]), dropout, rng, "auxiliary dropout")), size)),
        ]

    def forward(self, maps: list[Float[Tensor, "B C h w"]], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
        return self._predicted(self._joined(maps), size)

    def _predicted(self, joined: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
        return enlarged(self.predict(joined), size)

    def _joined(self, maps: list[Float[Tensor, "B C h w"]]) -> Float[Tensor, "B W fine_h fine_w"]:
        maps = [resize(x) for resize, x in zip(self.resize, maps, strict=True)]
        coarse = maps[-1]
        # a pool of k regions wants a map of k cells at least, which a small image does not have
        regions = [
            _to(conv(F.adaptive_avg_pool2d(coarse, k)), coarse) for k, conv in zip(POOLS, self.pooled, strict=True)
        ]
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps[:3], strict=True)]
        levels.append(self.regions(torch.cat([coarse, *regions], dim=1)))
        for k in (2, 1, 0):
            levels[k] = levels[k] + _to(levels[k + 1], levels[k])
        smooth = [conv(x) for conv, x in zip(self.smooth, levels[:3], strict=True)] + levels[3:]
        joined: Tensor = self.join(torch.cat([_to(y, smooth[0]) for y in smooth], dim=1))
        return joined


def _dropped(x: Float[Tensor, "B C h w"], rate: float, rng: SampleRng, name: str) -> Float[Tensor, "B C h w"]:
    """Whole channels left out, drawn for each sample by itself, and the others scaled up (Tompson et al., 2015)."""
    if not rate:
        return x
    scale = (rng.uniform(name, x.shape[1]) >= rate).to(x.dtype) / (1 - rate)
    return x * scale[:, :, None, None]


class _BatchNorm(nn.BatchNorm2d):
    """A single value per channel has no variance: one image pooled to one cell is normalised by running statistics."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        if self.training and x[:, 0].numel() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _double(dim: int) -> nn.Module:
    return nn.ConvTranspose2d(dim, dim, 2, stride=2)


def _convolved(dim: int, width: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(dim, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, _BatchNorm(width), nn.ReLU())


def _to(x: Float[Tensor, "B C h w"], like: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C H W"]:
    return enlarged(x, (like.shape[-2], like.shape[-1]))


class DPTHead(nn.Module):
    """DPT (Ranftl et al., 2021, section 3): four blocks' maps at 4, 2, 1 and 1/2 times the grid, fused from coarse to
    fine. As MultiMAE uses it: no BatchNorm, prefix tokens left out; 96, 192, 384 and 768 channels, 256 in the fusion,
    at a width of 768."""

    def __init__(self, dim: int, width: int, outputs: int):
        super().__init__()
        channels = [max(4, width // share) for share in (8, 4, 2, 1)]
        fused = max(8, width // 3)
        a, b, c, d = channels
        finest = nn.Sequential(nn.Conv2d(dim, a, 1), nn.ConvTranspose2d(a, a, 4, stride=4))
        finer = nn.Sequential(nn.Conv2d(dim, b, 1), nn.ConvTranspose2d(b, b, 2, stride=2))
        same = nn.Conv2d(dim, c, 1)
        coarser = nn.Sequential(nn.Conv2d(dim, d, 1), nn.Conv2d(d, d, 3, stride=2, padding=1))
        self.resize = nn.ModuleList([finest, finer, same, coarser])
        self.level = nn.ModuleList(nn.Conv2d(c, fused, 3, padding=1, bias=False) for c in channels)
        self.fuse = nn.ModuleList(Fusion(fused, is_coarsest=k == 3) for k in range(4))
        self.before = nn.Conv2d(fused, fused // 2, 3, padding=1)
        self.predict = nn.Sequential(nn.Conv2d(fused // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))

    def forward(self, maps: list[Float[Tensor, "B C h w"]], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
        levels = [level(resize(x)) for level, resize, x in zip(self.level, self.resize, maps, strict=True)]
        x = None
        for k in (3, 2, 1, 0):
            finer = levels[k - 1].shape[-2:] if k else tuple(2 * side for side in levels[0].shape[-2:])
            x = self.fuse[k](levels[k], x, finer)
        return self.predict(enlarged(self.before(x), size))


class Fusion(nn.Module):
    """A level, refined, and what comes from the coarser ones, at the size of the next finer level."""

    def __init__(self, dim: int, is_coarsest: bool):
        super().__init__()
        self.own = nn.Identity() if is_coarsest else Refine(dim)
        self.both = Refine(dim)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(
        self, level: Float[Tensor, "B C h w"], coarser: Float[Tensor, "B C h w"] | None, size: tuple[int, ...]
    ) -> Float[Tensor, "B C H W"]:
        x = level if coarser is None else coarser + self.own(level)
        return self.out(F.interpolate(self.both(x), size, mode="bilinear", align_corners=False))


class Refine(nn.Sequential):
    """A residual unit of two 3x3 convolutions, each after a ReLU."""

    def __init__(self, dim: int):
        convolutions = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))
        super().__init__(*(layer for conv in convolutions for layer in (nn.ReLU(), conv)))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + super().forward(x)


HeadName = Literal["linear", "convnext", "upernet", "dpt"]
Size = tuple[int, int]
SPREAD = {16: 4, 64: 8}  # predictions of a patch, and of one of its sides


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


def taps(head: HeadName, depth: int, blocks: Sequence[int] | None = None) -> Sequence[int]:
    """The blocks that a head reads, counted from 1: the last, or four, by default at even distances.

    `blocks` are four of a depth of 12, such as 4, 6, 8, 12; of another depth those at the same shares of it.
    """
    of_twelve = (3, 6, 9, 12) if blocks is None else blocks
    return [depth] if head in ("linear", "convnext") else [max(1, round(depth * k / PROPORTIONED)) for k in of_twelve]
