"""Colour operations as Pillow has them, on whole batches: images `B C H W` in [0, 1], one strength `B` per image.

What Pillow does to bytes (thresholds, bits, histograms) is done to 256 levels here too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L

Images = Float[Tensor, "B C H W"]
Strength = Float[Tensor, " B"]


def autocontrast(x: Images) -> Images:
    """Each channel stretched to the full range; one that does not vary stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


def equalize(x: Images) -> Images:
    """Each channel's levels spread so that they are used about equally often."""
    levels = _levels(x).flatten(2).long()  # B C HW
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.gather(2, levels).view(x.shape).to(x.dtype) / 255


def invert(x: Images) -> Images:
    """The negative: 1 minus the value of each pixel and channel."""
    return 1 - x


def posterize(x: Images, bits: Strength) -> Images:
    """Only the highest `bits` of 8 bits kept."""
    size = _each(2 ** (8 - bits))
    return (_levels(x) / size).floor() * size / 255


def solarize(x: Images, threshold: Strength) -> Images:
    """Levels from a threshold in 0..256 on are inverted."""
    return torch.where(_levels(x) >= _each(threshold), 1 - x, x)


def solarize_add(x: Images, added: Strength) -> Images:
    """Levels below 128 are raised by so many."""
    levels = _levels(x)
    return torch.where(levels < 128, (levels + _each(added)).clamp_max(255) / 255, x)


def saturation(x: Images, factor: Strength) -> Images:
    """Away from grey (above 1) or towards it (below); images of one channel stay."""
    return _blend(_grey(x), x, factor)


def contrast(x: Images, factor: Strength) -> Images:
    """Away from the mean grey of the image or towards it."""
    mean = (_grey(x).mean((2, 3), keepdim=True) * 255 + 0.5).floor() / 255
    return _blend(mean, x, factor)


def brightness(x: Images, factor: Strength) -> Images:
    """Away from black or towards it."""
    return _blend(torch.zeros_like(x), x, factor)


def sharpness(x: Images, factor: Strength) -> Images:
    """Away from a smoothed image or towards it; the outermost pixels stay."""
    if min(x.shape[-2:]) < 3:
        return x
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    smooth = x.clone()
    channels = x.shape[1]
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, (kernel / 13).expand(channels, 1, 3, 3), groups=channels)
    return _blend(smooth, x, factor)


def _each(strength: Strength) -> Float[Tensor, "B 1 1 1"]:
    return strength[:, None, None, None]


def _levels(x: Images) -> Images:
    return (x * 255).round()


def _blend(other: Tensor, x: Images, factor: Strength) -> Images:
    return (other + (x - other) * _each(factor)).clamp(0, 1)


def _grey(x: Images) -> Float[Tensor, "B 1 H W"]:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
