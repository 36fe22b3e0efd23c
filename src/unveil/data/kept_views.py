"""Views of images that several encoders read: decoded for the first of them, and kept where memory has room."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import psutil
from jaxtyping import Int
from torch import Tensor

from ..modeling.types import Batch
from .loader import Loader, ViewPolicy
from .sources import Samples, Source

_MOST_BYTES = 2 << 30

Numbered = tuple[Batch, Int[Tensor, " B"]]


@dataclass(frozen=True)
class _Pass:
    """All batches of a pass over a source, how they were made, and what could not be read."""

    source: Source | Samples
    made: tuple[ViewPolicy, object, int]
    batches: list[Numbered]
    unreadable: dict[str, str]


class KeptViews:
    """Passes over sources of which the views stay in memory, up to `most_bytes`.

    By default a quarter of the memory that is free, at most 2 GB. A pass that does not fit is read anew each time.
    """

    def __init__(self, most_bytes: int | None = None):
        self.left = min(_MOST_BYTES, psutil.virtual_memory().available // 4) if most_bytes is None else most_bytes
        self._passes: list[_Pass] = []

    def in_order(self, loader: Loader) -> Generator[Numbered]:
        """What `loader.in_order()` gives: the views of an earlier pass over the same source, made alike, or new ones.

        The loader names in either case what could not be read.
        """
        made = (loader.view, loader.modalities, loader.batch_size)
        for earlier in self._passes:
            if earlier.source is loader.source and earlier.made == made:
                loader.unreadable |= earlier.unreadable
                yield from earlier.batches
                return
        new, size = _Pass(loader.source, made, [], loader.unreadable), 0
        with closing(loader.in_order()) as batches:
            for batch, numbers in batches:
                if size <= self.left:
                    groups = (batch.maps, batch.valid, batch.present)
                    size += sum(tensor.nbytes for group in groups for tensor in group.values())
                    new.batches.append((batch, numbers))
                else:
                    new.batches.clear()
                yield batch, numbers
        if size <= self.left:
            self.left -= size
            self._passes.append(new)
