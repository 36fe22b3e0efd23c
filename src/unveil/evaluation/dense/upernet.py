"""UPerNet (Xiao et al., 2018) on maps of a plain ViT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

POOLS = (1, 2, 3, 6)
AUXILIARY, AUXILIARY_WIDTH = 0.4, 256  # of the auxiliary head's loss; channels of its one convolution


class UPerHead(nn.Module):
    """UPerNet (Xiao et al., 2018) as MAE fine-tunes it: four blocks' maps at 4, 2, 1 and 1/2 times the grid, the
    coarsest pooled over regions, added up from coarse to fine, and joined; all convolutions are `width` wide.

    Its auxiliary head (one convolution and a classifier on the third map, as in the public configurations, whose
    dropout is left out) answers while it learns."""

    def __init__(self, dim: int, width: int, outputs: int):
        super().__init__()
        self.resize = nn.ModuleList(
            [
                nn.Sequential(_double(dim), nn.BatchNorm2d(dim), nn.GELU(), _double(dim)),
                _double(dim),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.pooled = nn.ModuleList(_convolved(dim, width, 1) for _ in POOLS)
        self.regions = _convolved(dim + len(POOLS) * width, width, 3)
        self.lateral = nn.ModuleList(_convolved(dim, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolved(width, width, 3) for _ in range(3))
        self.join = _convolved(4 * width, width, 3)
        self.predict = nn.Conv2d(width, outputs, 1)
        self.auxiliary = nn.Sequential(_convolved(dim, AUXILIARY_WIDTH, 3), nn.Conv2d(AUXILIARY_WIDTH, outputs, 1))

    def aside(
        self, maps: list[Float[Tensor, "B C h w"]], size: tuple[int, int]
    ) -> list[tuple[float, Float[Tensor, "B K H W"]]]:
        """The auxiliary head's prediction, and the weight of its loss."""
        x = self.auxiliary(maps[2])
        return [(AUXILIARY, F.interpolate(x, size, mode="bilinear", align_corners=False))]

    def forward(self, maps: list[Float[Tensor, "B C h w"]], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
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
        x = self.predict(self.join(torch.cat([_to(y, smooth[0]) for y in smooth], dim=1)))
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _double(dim: int) -> nn.Module:
    return nn.ConvTranspose2d(dim, dim, 2, stride=2)


def _convolved(dim: int, width: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(dim, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _to(x: Float[Tensor, "B C h w"], like: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C H W"]:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
