"""Nearest images by features and by colour alone; images that are almost the same count once.

Shapes: Q queries, N images, C channels, H height, W width, D width of features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SAME = 0.98  # correlation of two thumbnails from which on they are near-duplicates
_SIDE, _LEVELS = 16, 4


@dataclass(frozen=True)
class Neighbour:
    """The number of an image, its distance from the query (1 - cos), and how many near-duplicates it stands for."""

    place: int
    distance: float
    alike: int = 0


def thumbnails(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
    """16 x 16 pixels of each image, centred and of unit length: products are correlations, whatever the brightness."""
    small = F.adaptive_avg_pool2d(images.nan_to_num().float(), _SIDE).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1, eps=1e-6)


def colour_histograms(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
    """The root of the share of pixels of each colour, four levels a channel of three at most: places do not count.

    Products of two are Bhattacharyya coefficients.
    """
    bands = images[:, :3].nan_to_num().float()
    low, high = bands.amin(dim=(0, 2, 3), keepdim=True), bands.amax(dim=(0, 2, 3), keepdim=True)
    if float(low.min()) >= 0 and float(high.max()) <= 1:
        low, high = torch.zeros_like(low), torch.ones_like(high)
    levels = ((bands - low) / (high - low).clamp_min(1e-6) * _LEVELS).long().clamp(0, _LEVELS - 1)
    powers = _LEVELS ** torch.arange(bands.shape[1])
    colour = (levels * powers[:, None, None]).sum(dim=1).flatten(1)
    counts = torch.zeros(len(images), _LEVELS ** bands.shape[1]).scatter_add(1, colour, torch.ones(colour.shape))
    return (counts / colour.shape[1]).sqrt()


def distinct_neighbours(
    features: tuple[Float[Tensor, "Q D"], Float[Tensor, "N D"]],
    images: tuple[Float[Tensor, "Q C H W"], Float[Tensor, "N C H W"]],
    count: int,
) -> list[list[Neighbour]]:
    """For each query the images with the most similar features, nearest first; features and images of queries come
    first. A near-duplicate of a nearer image is counted with it and left out."""
    queries, known = (F.normalize(own, dim=1) for own in features)
    pictures = thumbnails(images[1])
    near = (queries @ known.T).topk(min(8 * count, len(known)), dim=1)
    rows = []
    for places, similarities in zip(near.indices.tolist(), near.values.tolist(), strict=True):
        row: list[Neighbour] = []
        alike = ((pictures[places] @ pictures[places].T) >= SAME).fill_diagonal_(True)
        first = [int(same.nonzero()[0]) for same in alike]  # of each the nearest image that is like it
        for rank, place in enumerate(places):
            if first[rank] == rank and len(row) < count:
                others = sum(own == rank for own in first) - 1
                row.append(Neighbour(place, 1 - similarities[rank], others))
        rows.append(row)
    return rows
