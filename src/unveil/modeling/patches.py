"""Maps as encoder, targets and pictures read them: valid, normalised, cut into patches.

Shapes: B batch, C channels, H height, W width, N patches, T numbers of a patch.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from .constants import constant
from .types import DEPTH, Batch, Modality

ROBUST_EPS = 1e-6


def patchify(image: Tensor, patch: int) -> Tensor:
    """Patches (B N T) of maps (B C H W) in raster order, each laid out row, column, channel (MAE's order)."""
    cells = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B C h p w q; exports with a free batch size
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Shaped[Tensor, "B N T"], patch: int, grid: tuple[int, int]) -> Shaped[Tensor, "B C H W"]:
    """Patches `B N (p p C)` back to maps `B C H W`, the inverse of `patchify`."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=patch, q=patch)


def validity(batch: Batch, modality: Modality) -> Bool[Tensor, "B 1 H W"]:
    """Where a map holds a truth: the sample has it, the pixel is valid and finite, its class is one.

    A map of which the batch says nothing is whole: a number in it that is not finite is a fault, and does count.
    """
    image = batch.maps[modality.name]
    valid = torch.ones_like(image[:, :1], dtype=torch.bool)
    if modality.kind == "categorical":
        valid = (image >= 0) & (image < modality.num_classes)
    elif modality.name in batch.valid:
        valid = image.isfinite().all(dim=1, keepdim=True)
    if modality.name in batch.valid:
        valid = valid & batch.valid[modality.name]
    if modality.name in batch.present:
        valid = valid & batch.present[modality.name][:, None, None, None]
    return valid


def known_pixels(images: Shaped[Tensor, "B C H W"], modality: Modality) -> Bool[Tensor, "B 1 H W"]:
    """Where maps that come as tensors hold a value, as files of them are read: finite, above 0 of depth, a class."""
    if modality.kind == "categorical":
        return (images >= 0) & (images < modality.num_classes)
    valid = images.isfinite().all(dim=1, keepdim=True)
    return valid & (images > 0).all(dim=1, keepdim=True) if modality.name == DEPTH.name else valid


def statistics(
    batch: Batch, modality: Modality, valid: Bool[Tensor, "B 1 H W"]
) -> tuple[Float[Tensor, "*B C 1 1"], Float[Tensor, "*B C 1 1"]]:
    """What is subtracted from a continuous map and what it is divided by: the modality's own, or each image's.

    Robust: mean and unbiased variance of the valid pixels between the 10th and the 90th percentile (MultiMAE, arXiv
    2204.01678, its released code). Percentile: the 2nd becomes 0 and the 98th 1.
    """
    image = batch.maps[modality.name]
    if modality.normalise == "fixed":
        mean, std = (constant(s, image)[:, None, None] for s in (modality.mean, modality.std))
        return mean, std
    pixels = torch.where(valid, image, torch.inf).flatten(2).sort(dim=2).values  # B C HW, the invalid ones last
    count = valid.flatten(1).sum(dim=1)[:, None, None]
    if modality.normalise == "percentile":
        low, high = (pixels.gather(2, (share * count // 100).expand(*pixels.shape[:2], 1)) for share in (2, 98))
        mean, std = low, (high - low).clamp_min(ROBUST_EPS)
    else:
        place = torch.arange(pixels.shape[2], device=image.device)
        is_inner = (place >= count // 10) & (place < 9 * count // 10)
        number = is_inner.sum(dim=2, keepdim=True)
        mean = torch.where(is_inner, pixels, 0).sum(dim=2, keepdim=True) / number.clamp_min(1)
        spread = torch.where(is_inner, pixels - mean, 0).square().sum(dim=2, keepdim=True) / (number - 1).clamp_min(1)
        std = (spread + ROBUST_EPS).sqrt()
    return mean[..., None], std[..., None]


def normalised(batch: Batch, modality: Modality, valid: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
    """A continuous map, normalised; 0 where it is not valid."""
    mean, std = statistics(batch, modality, valid)
    return torch.where(valid, (batch.maps[modality.name] - mean) / std, 0)
