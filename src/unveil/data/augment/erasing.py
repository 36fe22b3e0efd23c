"""Random erasing: a rectangle of an image becomes noise (Zhong et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling.rng import SampleRng

AREA = (0.02, 1 / 3)  # share of the image
ASPECT = 0.3  # height over width, at least; at most its inverse
ATTEMPTS = 10


def erase(
    images: Float[Tensor, "B C H W"], rng: SampleRng, probability: float, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B C H W"]:
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
