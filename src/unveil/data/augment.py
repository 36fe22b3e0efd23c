"""Augmentations for training on labels: batched, on any device, each a pure function of its random draws.

Images are `B C H W` in [0, 1]. Colours change as in Pillow, what it does to bytes on 256 levels. Affine maps `B 2 3`
say where in the source a pixel of the result lies; pixels are squares whose place is their centre, as in Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..modeling.rng import SampleRng
from .decode import LUMA

AREA = (0.02, 1 / 3)  # share of the image
ASPECT = 0.3  # height over width, at least; at most its inverse
ATTEMPTS = 10
SWITCH = 0.5  # how often a batch is cut where both are on
APPLIED = 0.5  # the probability that a drawn operation is carried out
MAX_LEVEL = 10
Images = Float[Tensor, "B C H W"]
Strength = Float[Tensor, " B"]
Maps = Float[Tensor, "B 2 3"]
Operation = Callable[[Images, Strength, Strength, Sequence[float]], Images]


@dataclass(frozen=True)
class RandAugment:
    """`num_operations` of 15 operations per image, each carried out half of the time.

    The magnitude of 0..10 is drawn anew for each, normal with deviation `std`, and every operation grows with it: in
    the notation of the ViT recipes rand-m9-mstd0.5-inc1. Geometric operations are bilinear; `fill`, one number per
    channel, is what comes in from outside.
    """

    fill: Sequence[float]
    magnitude: float = 9
    std: float = 0.5
    num_operations: int = 2

    def __call__(self, images: Images, rng: SampleRng) -> Images:
        """Images in [0, 1] -> images in [0, 1]; which operations, and how strong, depends on each sample's key."""
        names = list(OPERATIONS)
        for k in range(self.num_operations):
            which, whether, sign = rng.uniform(f"augment {k}", 3).unbind(1)
            level = self.magnitude + self.std * rng.normal(f"augment level {k}", 1)[:, 0]
            level = level.clamp(0, MAX_LEVEL) / MAX_LEVEL
            signed = torch.where(sign < 0.5, -level, level)
            drawn = torch.where(whether < APPLIED, (which * len(OPERATIONS)).long(), -1)
            images = images.clone()
            for index in drawn.unique().tolist():
                if index >= 0:
                    rows = (drawn == index).nonzero()[:, 0]
                    images[rows] = apply(names[index], images[rows], level[rows], signed[rows], self.fill)
        return images


def apply(name: str, x: Images, level: Strength, signed: Strength, fill: Sequence[float]) -> Images:
    """One operation at a level in [0, 1]; those that have two directions go by the signed one."""
    return OPERATIONS[name](x, level, signed, fill).clamp(0, 1)


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


def hue_and_saturation(x: Images, turn: Strength, factor: Strength) -> Images:
    """Hues turned by so many full circles and saturations scaled, as in HSV; images of other than 3 channels stay."""
    if x.shape[1] != 3:
        return x
    value, which = x.max(1)
    chroma = value - x.amin(1)
    red, green, blue = x.unbind(1)
    sixths = torch.stack([green - blue, blue - red, red - green], 1).gather(1, which[:, None])[:, 0]
    sixths = sixths / chroma.clamp_min(1e-12) + 2 * which + 6 * turn[:, None, None]
    chroma = torch.minimum(chroma * factor[:, None, None], value)
    distance = (sixths[:, None] + x.new_tensor([5, 3, 1])[:, None, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(distance, 4 - distance).clamp(0, 1)


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
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def warp(x: Images, maps: Maps, fill: Sequence[float]) -> Images:
    """Each image seen through its map, bilinear; what lies outside has the colour `fill`, one number per channel."""
    height, width = x.shape[-2:]
    centres = [torch.arange(side, device=x.device) + 0.5 for side in (height, width)]
    rows, columns = torch.meshgrid(*centres, indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)  # H W 3
    source = torch.einsum("hwk,bjk->bhwj", places, maps)
    grid = source * source.new_tensor([2 / width, 2 / height]) - 1
    outside = x.new_tensor(fill)[:, None, None]
    return F.grid_sample(x - outside, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + outside


def rotation(degrees: Strength, size: tuple[int, int]) -> Maps:
    """Turned counter-clockwise about the centre of images of this size (height, width)."""
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    y, x = size[0] / 2, size[1] / 2
    return torch.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], 1).view(-1, 2, 3)


def shear_x(factor: Strength) -> Maps:
    """Rows pushed sideways in proportion to their distance from the top."""
    return _moved(factor, 0, 1)


def shear_y(factor: Strength) -> Maps:
    """Columns pushed up or down in proportion to their distance from the left."""
    return _moved(factor, 1, 0)


def shift(right: Strength, down: Strength) -> Maps:
    """The source looked up so many pixels to the right and below."""
    return _moved(right, 0, 2) + _moved(down, 1, 2) - torch.eye(2, 3, device=right.device)


def _moved(value: Strength, row: int, column: int) -> Maps:
    """The identity with one entry of its own for each image."""
    maps = torch.eye(2, 3, device=value.device).repeat(len(value), 1, 1)
    maps[:, row, column] = value
    return maps


def _factor(signed: Strength) -> Strength:
    return (1 + 0.9 * signed).clamp_min(0.1)


OPERATIONS: dict[str, Operation] = {  # of images, level, signed level and fill; drawn by their place in this order
    "autocontrast": lambda x, *_: autocontrast(x),
    "equalize": lambda x, *_: equalize(x),
    "invert": lambda x, *_: invert(x),
    "rotate": lambda x, _, signed, fill: warp(x, rotation(30 * signed, (x.shape[2], x.shape[3])), fill),
    "posterize": lambda x, level, *_: posterize(x, 4 - (4 * level).floor()),
    "solarize": lambda x, level, *_: solarize(x, 256 - (256 * level).floor()),
    "solarize_add": lambda x, level, *_: solarize_add(x, (110 * level).floor()),
    "saturation": lambda x, _, signed, __: saturation(x, _factor(signed)),
    "contrast": lambda x, _, signed, __: contrast(x, _factor(signed)),
    "brightness": lambda x, _, signed, __: brightness(x, _factor(signed)),
    "sharpness": lambda x, _, signed, __: sharpness(x, _factor(signed)),
    "shear_x": lambda x, _, signed, fill: warp(x, shear_x(0.3 * signed), fill),
    "shear_y": lambda x, _, signed, fill: warp(x, shear_y(0.3 * signed), fill),
    "translate_x": lambda x, _, signed, fill: warp(x, shift(0.45 * x.shape[3] * signed, 0 * signed), fill),
    "translate_y": lambda x, _, signed, fill: warp(x, shift(0 * signed, 0.45 * x.shape[2] * signed), fill),
}


def erase(images: Images, rng: SampleRng, probability: float, mean: Sequence[float], std: Sequence[float]) -> Images:
    """With this probability, a rectangle of each image becomes normal noise of the channels' mean and deviation.

    The noise is drawn for every pixel alone ("pixel" mode); normalised, it has mean 0 and deviation 1, so it leaves
    [0, 1] here. An image in which none of ten rectangles fits stays whole.
    """
    if not probability:
        return images
    height, width = images.shape[-2:]
    draws = rng.uniform("erasing", 3 + 2 * ATTEMPTS)
    whether, down, right = draws[:, :3].unbind(1)
    area, aspect = draws[:, 3:].unflatten(1, (2, ATTEMPTS)).unbind(1)  # B A
    area = (AREA[0] + area * (AREA[1] - AREA[0])) * height * width
    aspect = (math.log(ASPECT) * (1 - 2 * aspect)).exp()
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.long().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    rows = ((whether < probability) & fits.any(1)).nonzero()[:, 0]
    if not len(rows):
        return images
    tall, wide = tall[rows, None], wide[rows, None]
    top, left = (down[rows, None] * (height - tall + 1)).floor(), (right[rows, None] * (width - wide + 1)).floor()
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None]  # b H W
    noise = SampleRng(rng.key[rows]).normal("erased", images[0].numel()).view(len(rows), *images.shape[1:])
    noise = noise * images.new_tensor(std)[:, None, None] + images.new_tensor(mean)[:, None, None]
    images = images.clone()
    images[rows] = torch.where(inside[:, None], noise, images[rows])
    return images


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: `own` is the share of each label that stays.

    With a `box` (top, bottom, left, right), that part of each image is its partner's (CutMix, Yun et al., 2019);
    without one, the whole image is `own` of itself and the rest its partner's (mixup, Zhang et al., 2018).
    """

    own: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator, mixup: float, cutmix: float, size: tuple[int, int]) -> Mix:
        """The mix of a batch of images of this size: shares from Beta(alpha, alpha), an alpha of 0 turns one off."""
        is_cut = cutmix > 0 and (mixup == 0 or rng.random() < SWITCH)
        alpha = cutmix if is_cut else mixup
        own = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
        if not is_cut:
            return cls(own)
        edges: list[int] = []
        for side in size:
            half, centre = int(side * (1 - own) ** 0.5) // 2, int(rng.integers(side))
            edges += [max(0, centre - half), min(side, centre + half)]
        top, bottom, left, right = edges
        return cls(1 - (bottom - top) * (right - left) / (size[0] * size[1]), (top, bottom, left, right))


def mix_images(images: Images, mix: Mix) -> Images:
    """Each image mixed with its partner, the one at the same place from the end."""
    if mix.box is None:
        return images if mix.own == 1 else torch.lerp(images.flip(0), images, mix.own)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


def soft_labels(labels: Int[Tensor, " B"], num_classes: int, smoothing: float, mix: Mix) -> Float[Tensor, "B K"]:
    """Labels as probabilities: smoothed (Szegedy et al., 2016, section 7), then mixed as the images were."""
    hard = F.one_hot(labels, num_classes).float()
    smooth = hard * (1 - smoothing) + smoothing / num_classes
    return torch.lerp(smooth.flip(0), smooth, mix.own)
