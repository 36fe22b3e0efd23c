"""RandAugment: a few random operations per image, all of one magnitude (Cubuk et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling.rng import SampleRng
from . import colour, geometry

OPERATIONS = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "saturation"),
    *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
APPLIED = 0.5  # the probability that a drawn operation is carried out
MAX_LEVEL = 10


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

    def __call__(self, images: Float[Tensor, "B C H W"], rng: SampleRng) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] -> images in [0, 1]; which operations, and how strong, depends on each sample's key."""
        for k in range(self.num_operations):
            which, whether, sign = rng.uniform(f"augment {k}", 3).unbind(1)
            drawn = self.magnitude + self.std * rng.normal(f"augment level {k}", 1)[:, 0]
            level = drawn.clamp(0, MAX_LEVEL) / MAX_LEVEL
            signed = torch.where(sign < 0.5, -level, level)
            operation = torch.where(whether < APPLIED, (which * len(OPERATIONS)).long(), -1)
            images = images.clone()
            for index in operation.unique().tolist():
                if index >= 0:
                    rows = (operation == index).nonzero()[:, 0]
                    images[rows] = apply(OPERATIONS[index], images[rows], level[rows], signed[rows], self.fill)
        return images


def apply(
    name: str,
    x: Float[Tensor, "B C H W"],
    level: Float[Tensor, " B"],
    signed: Float[Tensor, " B"],
    fill: Sequence[float],
) -> Float[Tensor, "B C H W"]:
    """One operation at a level in [0, 1]; those that have two directions go by the signed one."""
    height, width = x.shape[-2:]
    factor = (1 + 0.9 * signed).clamp_min(0.1)
    match name:
        case "autocontrast" | "equalize" | "invert":
            operation: Callable[..., Tensor] = getattr(colour, name)
            return operation(x)
        case "posterize":
            return colour.posterize(x, 4 - (4 * level).floor())
        case "solarize":
            return colour.solarize(x, 256 - (256 * level).floor())
        case "solarize_add":
            return colour.solarize_add(x, (110 * level).floor())
        case "saturation" | "contrast" | "brightness" | "sharpness":
            operation = getattr(colour, name)
            return operation(x, factor)
        case "rotate":
            maps = geometry.rotation(30 * signed, (height, width))
        case "shear_x":
            maps = geometry.shear_x(0.3 * signed)
        case "shear_y":
            maps = geometry.shear_y(0.3 * signed)
        case "translate_x":
            maps = geometry.shift(0.45 * width * signed, torch.zeros_like(signed))
        case _:
            assert name == "translate_y", name
            maps = geometry.shift(torch.zeros_like(signed), 0.45 * height * signed)
    return geometry.warp(x, maps, fill).clamp(0, 1)
