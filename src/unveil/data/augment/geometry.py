"""Geometric operations on whole batches: each image through an affine map of its own.

A map says where in the source each pixel of the result lies: pixels are squares, the image spans 0..W and 0..H, and a
pixel's place is its centre. That is Pillow's convention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Maps = Float[Tensor, "B 2 3"]


def warp(x: Float[Tensor, "B C H W"], maps: Maps, fill: Sequence[float]) -> Float[Tensor, "B C H W"]:
    """Each image seen through its map, bilinear; what lies outside has the colour `fill`, one number per channel."""
    height, width = x.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=x.device) + 0.5, torch.arange(width, device=x.device) + 0.5, indexing="ij"
    )
    places = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)  # H W 3
    source = torch.einsum("hwk,bjk->bhwj", places, maps)
    grid = source * source.new_tensor([2 / width, 2 / height]) - 1
    outside = x.new_tensor(fill)[:, None, None]
    return F.grid_sample(x - outside, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + outside


def rotation(degrees: Float[Tensor, " B"], size: tuple[int, int]) -> Maps:
    """Turned counter-clockwise about the centre of images of this size (height, width)."""
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    y, x = size[0] / 2, size[1] / 2
    return _maps(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(factor: Float[Tensor, " B"]) -> Maps:
    """Rows pushed sideways in proportion to their distance from the top."""
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    return _maps(one, factor, zero, zero, one, zero)


def shear_y(factor: Float[Tensor, " B"]) -> Maps:
    """Columns pushed up or down in proportion to their distance from the left."""
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    return _maps(one, zero, zero, factor, one, zero)


def shift(right: Float[Tensor, " B"], down: Float[Tensor, " B"]) -> Maps:
    """The source looked up so many pixels to the right and below."""
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return _maps(one, zero, right, zero, one, down)


def _maps(*entries: Float[Tensor, " B"]) -> Maps:
    return torch.stack(entries, dim=1).reshape(-1, 2, 3)
