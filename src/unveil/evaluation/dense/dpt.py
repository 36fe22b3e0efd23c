"""The head of the dense prediction transformer (Ranftl et al., 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DPTHead(nn.Module):
    """DPT (Ranftl et al., 2021, section 3): four blocks' maps at 4, 2, 1 and 1/2 times the grid, fused from coarse to
    fine. As MultiMAE uses it: no BatchNorm, prefix tokens left out; 96, 192, 384 and 768 channels, 256 in the fusion,
    at a width of 768."""

    def __init__(self, dim: int, width: int, outputs: int):
        super().__init__()
        channels = [max(4, width // share) for share in (8, 4, 2, 1)]
        fused = max(8, width // 3)
        self.resize = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(dim, channels[0], 1), nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4)
                ),
                nn.Sequential(
                    nn.Conv2d(dim, channels[1], 1), nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2)
                ),
                nn.Conv2d(dim, channels[2], 1),
                nn.Sequential(
                    nn.Conv2d(dim, channels[3], 1), nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1)
                ),
            ]
        )
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
        return self.predict(F.interpolate(self.before(x), size, mode="bilinear", align_corners=False))


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
