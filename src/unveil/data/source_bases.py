"""What sources have in common: images that are decoded when they are read, labels read when needed, declared maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

from jaxtyping import Shaped
from torch import Tensor

from .decode import Unreadable, decode, to_channels
from .modality_config import Declared
from .read_map import Map
from .transforms import Sample, as_sample


class EncodedImages(ABC):
    """Images that are encoded where they lie, in `channels` channels each once they are read."""

    if TYPE_CHECKING:  # a field of the sources

        @property
        def channels(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image in messages."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """An image before decoding; raises `Unreadable`."""

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        name = self.name(index)
        return to_channels(decode(self.encoded(index), name), self.channels, name)


class LabelledImages(EncodedImages):
    """Encoded images with labels that are read when first needed, since training needs none."""

    @cached_property
    @abstractmethod
    def _labelled(self) -> tuple[Sequence[int] | None, list[str] | None]:
        """The labels and the names of the classes."""

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image, -1 for none."""
        return self._labelled[0]

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; ids of a taxonomy, words and truth values are their own names."""
        return self._labelled[1]


class DeclaredSamples(ABC):
    """Samples of the maps of `declared` modalities, each read at its own size; `image` is the first of them."""

    if TYPE_CHECKING:  # a field of the sources, which are dataclasses

        @property
        def declared(self) -> tuple[Declared, ...]: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of a sample in messages."""

    @abstractmethod
    def has(self, index: int) -> tuple[bool, ...]:
        """Which of the declared modalities a sample has; nothing is read for it."""

    @abstractmethod
    def _map(self, index: int, declared: Declared) -> Map:
        """A map that the sample has; raises `Unreadable`."""

    @property
    def channels(self) -> int:
        return self.declared[0].modality.channels

    def _present(self, index: int) -> list[Declared]:
        return [d for d, has in zip(self.declared, self.has(index), strict=True) if has]

    def read(self, index: int) -> dict[str, Map]:
        """The maps that the sample has, as they are stored, each at its own size; raises `Unreadable`."""
        return {d.name: self._map(index, d) for d in self._present(index)}

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        first = self.declared[0]
        if not self.has(index)[0]:
            raise Unreadable(self.name(index), f"has no file of {first.name}")
        return self._map(index, first).values

    def sample(self, index: int) -> Sample:
        return as_sample(self.read(index), [d.modality for d in self.declared], self.name(index))

    def settled(self, declared: tuple[Declared, ...]) -> Self:
        return replace(self, declared=declared)  # type: ignore[type-var]  # every source is a dataclass
