"""A model that says what hidden parts of its input look like, as protocols see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.types import Batch, Modality


@dataclass(frozen=True)
class Restored:
    """What is said of one modality: maps of the guess and the truth, in the units of the data, class ids of a
    categorical one; `asked` are the hidden pixels that have a truth. `losses` is the mean error of each sample, in
    the model's own target space and by its own loss, NaN where nothing counts."""

    modality: Modality
    guess: Tensor
    truth: Tensor
    asked: Bool[Tensor, "B 1 H W"]
    losses: Float[Tensor, " B"]


class Masks(Enum):
    """Masks at a model's own share of tokens: random ones that other models share, or as it is trained."""

    RANDOM = "random_masks"
    OWN = "own_masks"


Shown = float | Sequence[str] | Masks


class Restorer(Protocol):
    """Something that restores what is hidden of a batch."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of the modalities that the encoder reads."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the modalities that the decoders predict."""
        ...

    def restored(self, batch: Batch, shown: Shown) -> Mapping[str, Restored]:
        """What it says of hidden patches, by the name of what is predicted.

        `shown` is the share of all tokens that it reads, drawn by each sample's own chance, the modalities that it
        reads whole while the others are hidden, or which masks say so.
        """
        ...


@dataclass(frozen=True)
class HeldOutSamples:
    """Batches of samples that the model was not trained on, and how many samples there are."""

    address: str
    test_address: str | None
    batches: Callable[[], Iterator[Batch]]
    num_samples: int
