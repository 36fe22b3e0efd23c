"""Which images are the same, wherever they lie: by the content of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np
from jaxtyping import UInt64

from .decode import Unreadable
from .file_ends import Ends
from .file_names import as_array
from .prefetch import prefetch
from .sources import Samples, Source, Subset, origin, spread
from .splits import locations

UNKNOWN = 0  # of a file that cannot be read, or was not
_BY_ENDS = np.uint64(0x756E7665696C3032)  # the first number that a run stores, where long files are known by their ends


def digest(content: bytes) -> str:
    """32 hexadecimal digits that stand for a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def identity(ends: Ends) -> int:
    """The number of a file; of one that was read as a whole, the first half of its digest."""
    size = b"" if ends.is_whole else ends.size.to_bytes(8, "little")
    return int(digest(ends.start + ends.stop + size)[:16], 16)


def ends_of(source: Source | Samples, index: int) -> Ends:
    """The ends of a sample's file, of several maps the first; raises `Unreadable`."""
    read = getattr(source, "ends", None)
    if read is not None:
        ends = read(index)
        assert isinstance(ends, Ends)
        return ends
    content = _reader(source)
    assert content
    return Ends.within(content(index))


def _reader(source: Source | Samples) -> Callable[[int], bytes] | None:
    return getattr(source, "encoded", None) or getattr(source, "content", None)


def identities(
    source: Source, known: UInt64[np.ndarray, " N"] | None = None, *, by_ends: bool = True
) -> UInt64[np.ndarray, " K"]:
    """A number for each sample: of its file's content, of several maps the first; of a rendered one, of its settings.

    Those `known` of the whole source save reading its files again. `by_ends` reads the ends of long files alone.
    """
    whole, numbers = origin(source)
    if (packed := getattr(whole, "identities", None)) is not None:  # a pack knows those of what it was made of
        return np.asarray(packed[as_array(numbers)])
    if known is not None and len(known):
        own: UInt64[np.ndarray, " K"] = known[as_array(numbers)]
        return own
    read = _reader(whole)
    if read is None:
        places = (location.encode(errors="surrogateescape") for location in locations(source))
        return np.array([int(digest(place)[:16], 16) for place in places], np.uint64)

    def of(index: int) -> int:
        try:
            return identity(ends_of(whole, index) if by_ends else Ends(read(index)))
        except Unreadable:
            return UNKNOWN

    with closing(prefetch((partial(of, i) for i in numbers), 64)) as results:
        return np.fromiter(results, np.uint64, len(numbers))


def stored_identities(numbers: UInt64[np.ndarray, " N"]) -> bytes:
    """Identities as a run stores them: 8 bytes each."""
    return np.concatenate([np.array([_BY_ENDS], np.uint64), numbers]).tobytes()


def replaced(source: Source, stored: UInt64[np.ndarray, " M"], most: int) -> list[int]:
    """Those of at most so many samples, evenly spread, whose files are not those whose identities a run has stored.

    Samples are in the order of the run's; none where it has stored no such identities, or the source has no files.
    """
    known, whole = stored[1:], origin(source)[0]
    if len(stored) != len(source) + 1 or stored[0] != _BY_ENDS or _reader(whole) is None:
        return []
    looked_at = np.array(spread(len(source), most))
    own, before = identities(Subset(source, looked_at.tolist())), known[looked_at]
    return [int(i) for i in looked_at[(own != before) & (own != UNKNOWN) & (before != UNKNOWN)]]


def shared(source: Source, known: UInt64[np.ndarray, " M"]) -> list[bool]:
    """Whether each sample is one of those whose identities a run has stored; runs of release 0.1 know whole files."""
    own = identities(source, by_ends=bool(len(known)) and bool(known[0] == _BY_ENDS))
    return [bool(is_known) for is_known in np.isin(own, known) & (own != UNKNOWN)]
