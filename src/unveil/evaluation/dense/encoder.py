"""An encoder that reads maps of one or several modalities as tokens on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.types import Batch, Modality
from ..types import FeatureEncoder, TrainableEncoder


@runtime_checkable
class DenseEncoder(TrainableEncoder, Protocol):
    """A trainable encoder with the modalities that it reads, and its tokens of any of them."""

    @property
    def modalities(self) -> Sequence[Modality]:
        """What it can read; the first is the one of `features`."""
        ...

    @property
    def patch(self) -> int:
        """The side in pixels of the square patch of a token."""
        ...

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1: prefix tokens, then the patches of each modality by rows."""
        ...


def check_dense(encoder: FeatureEncoder) -> DenseEncoder | None:
    """The encoder where it gives tokens on a grid, else None (raw pixels)."""
    return encoder if isinstance(encoder, DenseEncoder) and isinstance(encoder, nn.Module) else None


def chosen_inputs(encoder: DenseEncoder, wanted: Sequence[str], there: Sequence[str], target: str) -> list[Modality]:
    """The modalities to read, in the encoder's order; by default the first that the data have.

    Raises ValueError for one that the encoder does not read, and for the target itself.
    """
    known = {m.name: m for m in encoder.modalities}
    if not wanted:
        readable = [name for name in known if name in there and name != target]
        if not readable:
            raise ValueError(
                f"the encoder reads {', '.join(known)}, and the data have {', '.join(there)}: nothing but the target is"
                " left to read"
            )
        wanted = readable[:1]
    for name in wanted:
        if name == target:
            raise ValueError(f"{name} is what is to be predicted; give --inputs without it")
        if name not in known:
            raise ValueError(f"this encoder reads {', '.join(known)}, not {name!r}; give other --inputs")
    return [m for name, m in known.items() if name in wanted]
