"""An encoder that can be trained on: what fine-tuning and probes of tokens need to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from .features import FeatureEncoder


@runtime_checkable
class TrainableEncoder(FeatureEncoder, Protocol):
    """An `nn.Module` that reads images in [0, 1] as tokens, and that `copy.deepcopy` copies whole."""

    @property
    def dim(self) -> int:
        """The width of the tokens that `maps` returns."""
        ...

    @property
    def depth(self) -> int:
        """The number of blocks, the last one that `maps` accepts."""
        ...

    @property
    def num_prefix(self) -> int:
        """How many tokens before those of the patches: class token, registers."""
        ...

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where there is none."""
        ...

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, by which it normalises images itself."""
        ...

    def maps(self, images: Float[Tensor, "B C H W"], blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1, before any final norm: prefix tokens, then patches by rows."""
        ...

    def layer_of(self, name: str) -> int:
        """Where a parameter sits: 0 before the blocks, k in block k counted from 1, depth + 1 after them."""
        ...

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Of each block, the modules whose outputs are added to its input."""
        ...


@runtime_checkable
class Savable(Protocol):
    """An encoder that can be kept in a file."""

    def save(self, file: Path) -> None:
        """Write the weights to a file in the safetensors format."""
        ...


def check_trainable(encoder: FeatureEncoder) -> TrainableEncoder | None:
    """The encoder where it can be trained, else None (raw pixels)."""
    return encoder if isinstance(encoder, TrainableEncoder) and isinstance(encoder, nn.Module) else None
