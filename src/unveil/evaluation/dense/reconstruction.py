"""Models that reconstruct hidden parts of their input, as protocols see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.types import Batch, Modality


@dataclass(frozen=True)
class Reconstruction:
    """A predicted map of one modality and the true one, in the units of the data (class ids of a categorical one).

    `predicted` are the hidden pixels that have a truth. `losses` is the mean loss of each sample in the model's own
    target space, NaN where no token counts.
    """

    modality: Modality
    guess: Tensor
    truth: Tensor
    predicted: Bool[Tensor, "B 1 H W"]
    losses: Float[Tensor, " B"]


class Masks(Enum):
    """Masks at a model's own share of visible tokens: random ones that other models share, or its own."""

    RANDOM = "random_masks"
    OWN = "own_masks"


Visible = float | Sequence[str] | Masks  # a share of all tokens, drawn uniformly; whole modalities; or masks


class Reconstructor(Protocol):
    """Something that reconstructs the hidden tokens of a batch."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of the modalities that the encoder reads."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the modalities that the decoders predict."""
        ...

    def reconstruct(self, batch: Batch, visible: Visible) -> Mapping[str, Reconstruction]:
        """The reconstruction of each objective, by its name, with every hidden token predicted."""
        ...


@dataclass(frozen=True)
class HeldOutSamples:
    """Batches of samples that the model was not trained on, and how many samples there are."""

    address: str
    test_address: str | None
    batches: Callable[[], Iterator[Batch]]
    num_samples: int
