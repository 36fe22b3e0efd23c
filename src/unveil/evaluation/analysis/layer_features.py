"""Features of every block of an encoder, their RankMe and the attention distance of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling.image_encoder import ImageEncoder
from ...modeling.layers import Attention
from ...modeling.public_vits import PublicViT
from ..rankme import rankme
from .hooks import record_inputs
from .metrics import attention_distance, linear_cka

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
def layer_features(encoder: ImageEncoder | PublicViT, images: Sequence[Float[Tensor, "C H W"]]) -> list[LayerFeatures]:
    """Every block of an encoder, on images of one size that its patch divides."""
    patch = encoder.encoder.patch if isinstance(encoder, ImageEncoder) else encoder.config.patch
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
