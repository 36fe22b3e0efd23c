"""Patch features of one image in pictures: their principal components, the similarity to a patch, attention by head."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ...reporting.pictures import Picture, attention_overlay, patch_values

_SIDE = 112  # pixels of a small map


def pca_colours(features: Float[Tensor, "N D"], grid: tuple[int, int]) -> Picture:
    """The first three principal components of an image's patches as red, green and blue, a pixel a patch.

    Each is stretched from its 2nd to its 98th percentile; the sign of a component makes its largest entry positive.
    """
    centred = features - features.mean(dim=0)
    if not bool(centred.any()):
        return np.full((*grid, 3), 128, np.uint8)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:3]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    scores = centred @ (axes * largest.sign()).T
    scores = F.pad(scores, (0, 3 - scores.shape[1]))
    low, high = (torch.quantile(scores, share, dim=0) for share in (0.02, 0.98))
    unit = ((scores - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    picture: np.ndarray = (unit.reshape(*grid, 3) * 255 + 0.5).to(torch.uint8).cpu().numpy()
    return picture


def similarity(features: Float[Tensor, "N D"], patch: int) -> Float[Tensor, " N"]:
    """The cosine similarity of every patch to one of them."""
    unit = F.normalize(features, dim=1)
    return unit @ unit[patch]


def overlay(image: Picture, values: Float[Tensor, "h w"], small: bool = False) -> UInt8[np.ndarray, "R C 3"]:
    """A map in colours over the image; a small one for a table of many."""
    if small and max(image.shape[:2]) > _SIDE:
        step = -(-max(image.shape[:2]) // _SIDE)
        image = image[::step, ::step]
    return attention_overlay(image, values.float().cpu().numpy())


def similar_patches(image: Picture, values: Float[Tensor, "h w"]) -> Picture:
    """Similarities in colours of patches, from the lowest of the image to 1."""
    return patch_values(image, values.float().cpu().numpy(), (min(float(values.min()), 1 - 1e-6), 1.0))


def enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture of a pixel a patch at the size (height, width) of its image."""
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.NEAREST))
