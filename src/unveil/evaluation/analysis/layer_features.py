"""Features of every block of an encoder, their RankMe and the attention distance of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling.image_encoder import FeatureExtractor
from ...modeling.layers import Attention
from ..features import rankme
from .attention import record_inputs

_BATCH = 16


@dataclass(frozen=True)
class LayerFeatures:
    """One block: features of images (the mean over patches), their RankMe, and each head's attention distance in
    pixels."""

    features: Float[Tensor, "B D"]
    rankme: float
    distances: tuple[float, ...]

    @property
    def distance(self) -> float:
        return sum(self.distances) / len(self.distances)


@torch.no_grad()
def layer_features(encoder: FeatureExtractor, images: Sequence[Float[Tensor, "C H W"]]) -> list[LayerFeatures]:
    """Every block of an encoder, on images of one size that its patch divides."""
    patch = encoder.patch
    prefix, blocks = encoder.num_prefix, range(1, encoder.depth + 1)
    attentions = [m for m in encoder.modules() if isinstance(m, Attention)]
    features: list[list[Tensor]] = [[] for _ in blocks]
    distances: list[list[Tensor]] = [[] for _ in blocks]
    for start in range(0, len(images), _BATCH):
        batch = torch.stack(list(images[start : start + _BATCH])).to(encoder.device)
        grid = batch.shape[-2] // patch, batch.shape[-1] // patch
        with record_inputs(attentions) as inputs:
            maps = encoder.maps(batch, blocks)
        for k, (attn, arguments) in enumerate(inputs):
            features[k].append(maps[k][:, prefix:].float().mean(dim=1).cpu())
            attention = attn.between_patches(arguments[0], prefix, arguments[3])
            distances[k].append(attention_distance(attention, grid, patch).cpu() * len(batch))
    results = []
    for chunks, sums in zip(features, distances, strict=True):
        x = torch.cat(chunks)
        results.append(LayerFeatures(x, rankme(x), tuple((torch.stack(sums).sum(dim=0) / len(images)).tolist())))
    return results


def cka_matrix(first: Sequence[LayerFeatures], second: Sequence[LayerFeatures]) -> list[list[float]]:
    """The linear CKA of every layer of one encoder with every layer of another."""
    return [[linear_cka(a.features, b.features) for b in second] for a in first]


def linear_cka(x: Float[Tensor, "B D"], y: Float[Tensor, "B E"]) -> float:
    """Linear centred kernel alignment of features of the same images, from 0 to 1 (Kornblith et al., 2019, arXiv
    1905.00414): |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms. It does not change with rotation or scale.
    """
    x, y = (m.double() - m.double().mean(dim=0) for m in (x, y))
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / norms.clamp_min(1e-30))


def attention_distance(attention: Float[Tensor, "B H N N"], grid: tuple[int, int], patch: int) -> Float[Tensor, " H"]:
    """Mean attention distance of each head in pixels: from a patch to the patches, weighted by attention (ViT, arXiv
    2010.11929, section 4.5). Attention to prefix tokens is left out."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    cells = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(attention)
    distance = torch.cdist(cells, cells) * patch
    weight = attention / attention.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return (weight * distance).sum(dim=-1).mean(dim=(0, 2))
