"""What sources have in common: images that are decoded when they are read, labels read when needed, declared maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self

from jaxtyping import Shaped
from torch import Tensor

from .decode import Unreadable, decode, to_channels
from .modality_config import Declared
from .read_map import Map
from .transforms import Sample, as_sample

if TYPE_CHECKING:  # it imports sources
    from .sources import EncodedSource


class EncodedImages:
    """A base of sources whose images are encoded where they lie."""

    def image(self: EncodedSource, index: int) -> Shaped[Tensor, "C H W"]:
        name = self.name(index)
        return to_channels(decode(self.encoded(index), name), self.channels, name)


class LabelledImages(EncodedImages):
    """Encoded images with labels that are read when first needed, since training needs none."""

    @cached_property
    def _labelled(self) -> tuple[Sequence[int] | None, list[str] | None]:
        return None, None

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image, -1 for none."""
        return self._labelled[0]

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; ids of a taxonomy, words and truth values are their own names."""
        return self._labelled[1]


class DeclaredSamples(Protocol):
    """A base of samples of declared maps, each read at its own size; `image` is the first of them."""

    if TYPE_CHECKING:  # else a dataclass would take this property as the default of its field

        @property
        def declared(self) -> tuple[Declared, ...]: ...
        def name(self, index: int) -> str: ...
        def has(self, index: int) -> tuple[bool, ...]: ...
        def _map(self, index: int, declared: Declared) -> Map: ...

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
