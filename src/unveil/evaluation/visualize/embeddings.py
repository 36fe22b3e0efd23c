"""All images of a sample by their features: a map of them, near-duplicates, and images that are like no other.

Shapes: N images, D width of features.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .neighbours import SAME, thumbnails

FEW = 100  # images below which neighbours say little, and PCA draws the map
_NEAREST, _DIMS = 5, 50


@dataclass(frozen=True)
class Embeddings:
    """Places of images on a map, N 2 in [0, 1], by `method`; pairs that are almost the same with the correlation of
    their thumbnails, and images far from all others with their distance over the median one."""

    method: str
    points: Float[np.ndarray, "N 2"]
    duplicates: Sequence[tuple[int, int, float]]
    outliers: Sequence[tuple[int, float]]


def embed_map(features: Float[Tensor, "N D"], images: Float[Tensor, "N C H W"], most: int = 6) -> Embeddings:
    """The map, by UMAP or t-SNE where their library is installed and there are 100 images, by PCA otherwise.

    Near-duplicates are among each other's nearest by features and have thumbnails that correlate by 0.98; outliers
    have the largest mean distance (1 - cos) to their five nearest. At most `most` of each.
    """
    unit = F.normalize(features.float() - features.float().mean(dim=0), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-2)
    near = similarity.topk(min(_NEAREST, len(unit) - 1), dim=1)
    small = thumbnails(images)
    correlation = (small[:, None] * small[near.indices]).sum(dim=-1)
    pairs = {
        (min(i, j), max(i, j)): float(correlation[i, rank])
        for i, rank in (correlation >= SAME).nonzero().tolist()
        if (j := int(near.indices[i, rank])) >= 0
    }
    duplicates = sorted(((*pair, value) for pair, value in pairs.items()), key=lambda one: -one[2])[:most]
    distance = (1 - near.values).mean(dim=1)
    ratio = distance / distance.median().clamp_min(1e-6)
    outliers = [(int(i), float(ratio[i])) for i in ratio.topk(min(most, len(ratio))).indices]
    method, points = _places(unit)
    low, high = points.min(axis=0), points.max(axis=0)
    return Embeddings(method, (points - low) / np.maximum(high - low, 1e-9), duplicates, outliers)


def _places(unit: Float[Tensor, "N D"]) -> tuple[str, Float[np.ndarray, "N 2"]]:
    centred = unit - unit.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh
    reduced = (centred @ directions[:_DIMS].T).numpy()
    method, place = _method() if len(unit) >= FEW else ("PCA", _first_two)
    return method, np.asarray(place(reduced), np.float64)


def _first_two(reduced: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
    return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))


def _method() -> tuple[str, Callable[[Float[np.ndarray, "N D"]], Float[np.ndarray, "N 2"]]]:
    """The best way that is installed: none of the libraries is needed."""
    if importlib.util.find_spec("umap"):
        return "UMAP", lambda reduced: __import__("umap").UMAP(random_state=0).fit_transform(reduced)
    if importlib.util.find_spec("sklearn"):
        from sklearn.manifold import TSNE

        return "t-SNE", lambda reduced: TSNE(init="pca", random_state=0).fit_transform(reduced)
    return "PCA", _first_two
