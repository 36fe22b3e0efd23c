"""What features are made of: which blocks are read, and how their tokens become one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .types import PARTS, Combine, Pool


def pool_tokens(cls: Float[Tensor, "B D"], patches: Float[Tensor, "B N D"], pool: Pool) -> Float[Tensor, "B F"]:
    """The class token, and the mean and the standard deviation of the patch tokens, side by side as the pool says."""
    make = {"cls": lambda: cls, "mean": lambda: patches.mean(dim=1), "std": lambda: patches.std(dim=1, correction=0)}
    parts: list[Tensor] = [make[part]() for part in PARTS[pool]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def combined(features: Sequence[Float[Tensor, "B F"]], combine: Combine) -> Float[Tensor, "B G"]:
    """Features of several blocks side by side, or their mean."""
    if len(features) == 1:
        return features[0]
    return torch.cat(list(features), dim=1) if combine == "concat" else torch.stack(list(features)).mean(dim=0)


def resolve_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Blocks counted from 1, of numbers that may count from the end (-1 is the last); the last of no numbers.

    Raises ValueError for one that there is not, or that is named twice.
    """
    blocks = tuple(layer + depth + 1 if layer < 0 else layer for layer in layers) or (depth,)
    if min(blocks) < 1 or max(blocks) > depth or len(set(blocks)) < len(blocks):
        raise ValueError(
            f"--layer names blocks of 1 to {depth}, or -{depth} to -1 from the end, each once; got"
            f" {' '.join(map(str, layers))}"
        )
    return blocks
