"""Which samples are the same, however their address is written and wherever they lie."""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

from .aligned_folders import AlignedSource
from .sources import EncodedSource, SampleSource, Source, origin


@runtime_checkable
class Located(Protocol):
    """A source whose samples are known wherever they are opened from."""

    def location(self, index: int) -> str:
        """The resolved path of a sample's file, and the row in it; of a rendered one what it is rendered from."""


def locations(source: Source) -> list[str]:
    """What identifies each sample of a source, however its address was written; without files, address and name."""
    whole, numbers = origin(source)
    return [whole.location(i) if isinstance(whole, Located) else f"{whole.address}: {whole.name(i)}" for i in numbers]


def names_digest(source: Source) -> str:
    """A digest of the names of all samples, in order: the same wherever the same files lie."""
    digest = hashlib.sha256()
    whole, numbers = origin(source)
    if not isinstance(whole, EncodedSource | AlignedSource):  # rendered images: their names leave out their size
        digest.update(source.address.encode())
    for i in range(len(source)):
        digest.update(source.name(i).encode(errors="surrogateescape") + b"\0")
    if isinstance(whole, SampleSource):
        digest.update(bytes(has for i in numbers for has in whole.has(i)))
    return digest.hexdigest()[:16]
