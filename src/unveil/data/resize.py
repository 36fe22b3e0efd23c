"""Resizing of images, class ids and maps with unknown pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

Resize = Callable[[Tensor, tuple[int, int]], Tensor]


def resize(image: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> Shaped[Tensor, "C h w"]:
    """The image at `size` (height, width): antialiased bicubic, in bytes for uint8, else in float kept in [0, 1]."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized = interpolate(image[None], size, mode="bicubic", antialias=True)[0]
    return resized if image.dtype == torch.uint8 else resized.clamp(0, 1)


def resize_nearest(image: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> Shaped[Tensor, "C h w"]:
    """The image at `size`, each pixel that of the old one in whose cell its centre lies: class ids stay ids."""
    if tuple(image.shape[-2:]) == size:
        return image
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new) for new, old in zip(size, image.shape[-2:], strict=True)
    )
    return image[:, rows][:, :, columns]


def resize_known(image: Float[Tensor, "C H W"], size: tuple[int, int]) -> Float[Tensor, "C h w"]:
    """Values with what is known of them, 1 or 0, as the last channel, at `size`: means over known pixels alone.

    Weights are those of an antialiased triangle, none below 0, so that no mean lies outside the values. A new pixel
    is known where at least half of its weight is; where it is not, its values are 0.
    """
    if tuple(image.shape[-2:]) == size:
        return torch.cat([image[:-1] * image[-1:], image[-1:]])
    known = image[-1:]
    weighed = torch.cat([image[:-1] * known, known])[None]
    summed = interpolate(weighed, size, mode="bilinear", antialias=True)[0]
    share = summed[-1:]
    is_known = (share >= 0.5 - 1e-6).to(image.dtype)
    return torch.cat([summed[:-1] / share.clamp_min(1e-6) * is_known, is_known])
