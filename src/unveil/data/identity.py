"""Which images are the same, wherever they lie: by the content of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np
from jaxtyping import UInt64

from .decode import Unreadable
from .loader import prefetch
from .sources import Source, origin
from .splits import locations

UNKNOWN = 0  # of a file that cannot be read


def digest(content: bytes) -> str:
    """32 hexadecimal digits that stand for a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def identities(source: Source, digests: Sequence[str] = ()) -> UInt64[np.ndarray, " N"]:
    """A number for each sample: of its file's content, of several maps the first; of a rendered one, of its settings.

    `digests` of the files of the whole source, where they have been read already, save reading them again.
    """
    whole, numbers = origin(source)
    if (packed := getattr(whole, "identities", None)) is not None:  # a pack knows those of what it was made of
        return np.asarray(packed[numbers])
    read = getattr(whole, "encoded", None) or getattr(whole, "content", None)
    if read is None:
        digested = [digest(location.encode(errors="surrogateescape")) for location in locations(source)]
    elif digests:
        digested = [digests[i] for i in numbers]
    else:

        def of(index: int) -> str:
            try:
                return digest(read(index))
            except Unreadable:
                return ""

        with closing(prefetch((partial(of, i) for i in numbers), 64)) as results:
            digested = list(results)
    return np.array([int(each[:16], 16) if each else UNKNOWN for each in digested], np.uint64)


def shared(source: Source, known: UInt64[np.ndarray, " M"]) -> list[bool]:
    """Whether each sample is one of the `known` identities."""
    own = identities(source)
    return [bool(is_known) for is_known in np.isin(own, known) & (own != UNKNOWN)]
