"""What each layer of an encoder holds: its features, their rank, how far its attention reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling import layers
from ...modeling.image_encoder import ImageEncoder
from ...modeling.public_vits import PublicViT
from ...modeling.public_vits import vit as foreign_vit
from ..rankme import rankme
from .hooks import record_inputs
from .metrics import attention_distance, linear_cka

_BATCH = 16
Attn = layers.Attention | foreign_vit.Attention


@dataclass(frozen=True)
class LayerFeatures:
    """One block: features of images (the mean over patches), their RankMe, the reach of each head in pixels."""

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
    start, blocks = encoder.num_prefix, range(1, encoder.depth + 1)
    attentions = [m for m in encoder.modules() if isinstance(m, layers.Attention | foreign_vit.Attention)]
    features: list[list[Tensor]] = [[] for _ in blocks]
    reach: list[list[Tensor]] = [[] for _ in blocks]
    for place in range(0, len(images), _BATCH):
        few = torch.stack(list(images[place : place + _BATCH])).to(encoder.device)
        grid = few.shape[-2] // patch, few.shape[-1] // patch
        with record_inputs(attentions) as read:
            maps = encoder.maps(few, blocks)
        for k, (attn, given) in enumerate(read):
            features[k].append(maps[k][:, start:].float().mean(dim=1).cpu())
            reach[k].append(attention_distance(_between_patches(attn, given, start), grid, patch).cpu() * len(few))
    found = []
    for parts, heads in zip(features, reach, strict=True):
        x = torch.cat(parts)
        found.append(LayerFeatures(x, rankme(x), tuple((torch.stack(heads).sum(dim=0) / len(images)).tolist())))
    return found


def cka_matrix(first: Sequence[LayerFeatures], second: Sequence[LayerFeatures]) -> list[list[float]]:
    """The linear CKA of every layer of one encoder with every layer of another."""
    return [[linear_cka(a.features, b.features) for b in second] for a in first]


def _between_patches(attn: Attn, given: tuple[Any, ...], start: int) -> Float[Tensor, "B H N N"]:
    """How much each patch attends to each patch."""
    x = given[0]
    if isinstance(attn, layers.Attention):
        return attn.rows(x, x[:, start:])[..., start:]
    return attn.between_patches(x, start, given[1])
