"""Names and numbers of millions of files in a few dozen bytes each; strings are made when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import add
from typing import TypeVar, cast, overload

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8, UInt64

T = TypeVar("T")
_CHUNK = 1 << 16  # names that are made at once
_LONGEST = 256  # bytes of a name whose positions have numbers of their own in a hash
_GOLDEN = 0x9E3779B97F4A7C15


class _Compact(Sequence[T]):
    """A sequence that equals any other of the same items, as a list does."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:3]))
        return f"[{first}, ... {len(self):,} in all]" if len(self) > 3 else f"[{first}]"


class Numbers(_Compact[int]):
    """Whole numbers, such as labels or indices, in 4 or 8 bytes each instead of the 36 of a list."""

    def __init__(self, values: Int[np.ndarray, " N"]) -> None:
        self.array = values

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return cast("int | list[int]", self.array[index].tolist())

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.array), _CHUNK):
            yield from self.array[start : start + _CHUNK].tolist()


def as_array(numbers: Sequence[int]) -> Int[np.ndarray, " N"]:
    """Numbers as an array; without a copy where they are one already."""
    if isinstance(numbers, range):
        return np.arange(numbers.start, numbers.stop, numbers.step)
    return numbers.array if isinstance(numbers, Numbers) else np.array(numbers, np.int64)


class Names(_Compact[str]):
    """Paths below a folder, with /: each the number of its folder and a name; all names are one string of bytes.

    `folders` are the distinct folders, '' the upper one. `names` ends each name with a zero byte, which no name holds.
    """

    def __init__(self, folders: list[str], folder: Int32[np.ndarray, " N"], names: bytes) -> None:
        self.folders, self.folder, self.names = folders, folder, names
        wide = np.uint32 if len(names) < 1 << 32 else np.uint64
        self._ends = np.flatnonzero(self._bytes == 0).astype(wide)
        assert len(self._ends) == len(folder)

    @classmethod
    def of(cls, paths: Iterable[str]) -> Names:
        """The compact form of paths, in their order."""
        number: dict[str, int] = {}
        folder, parts = [], []
        for path in paths:
            above, _, name = path.rpartition("/")
            if path.startswith("/") and not above:
                above = "/"
            folder.append(number.setdefault(above, len(number)))
            parts.append(name)
        return cls(list(number), np.array(folder, np.int32), encode_names(parts))

    @property
    def _bytes(self) -> UInt8[np.ndarray, " B"]:
        return np.frombuffer(self.names, np.uint8)

    @cached_property
    def _prefixes(self) -> list[str]:
        return [folder if folder in ("", "/") else f"{folder}/" for folder in self.folders]

    def __len__(self) -> int:
        return len(self.folder)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return list(self._some(start, stop)) if step == 1 else [self[i] for i in range(start, stop, step)]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start = int(self._ends[place - 1]) + 1 if place else 0
        name = self.names[start : int(self._ends[place])]
        prefix: str = self._prefixes[self.folder[place]]
        return prefix + name.decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self._some(start, min(start + _CHUNK, len(self)))

    def _some(self, start: int, stop: int) -> Iterator[str]:
        """The names of a stretch, several times faster than one by one."""
        if start >= stop:
            return
        begin = int(self._ends[start - 1]) + 1 if start else 0
        names = self.names[begin : int(self._ends[stop - 1])].decode(errors="surrogateescape").split("\0")
        prefixes = [self._prefixes[folder] for folder in self.folder[start:stop].tolist()]
        yield from map(add, prefixes, names)

    def is_same(self, other: Names) -> bool:
        """Whether the same paths are held in the same way."""
        return self.folders == other.folders and self.names == other.names and np.array_equal(self.folder, other.folder)

    def take(self, rows: Int[np.ndarray, " K"] | Bool[np.ndarray, " N"]) -> Names:
        """Some of the names, in the order of `rows`."""
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        starts, ends = self._bounds
        names = b"".join(self.names[a : b + 1] for a, b in zip(starts[chosen], ends[chosen], strict=True))
        return Names(self.folders, self.folder[chosen], names)

    @property
    def _bounds(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        ends = self._ends.astype(np.int64)
        return np.concatenate([np.zeros(1, np.int64), ends + 1])[:-1], ends

    def end_with(self, suffix: str) -> Bool[np.ndarray, " N"]:
        """Which names end with a suffix of ASCII in lower case, however they are written."""
        starts, ends = self._bounds
        text = self._bytes
        result: Bool[np.ndarray, " N"] = ends - starts >= len(suffix)
        for back, letter in enumerate(reversed(suffix.encode()), start=1):
            own = text[np.maximum(ends - back, 0)]
            result &= np.where((own >= 65) & (own <= 90), own + 32, own) == letter
        return result

    def first_of_folders(self) -> list[str]:
        """One path of each folder that holds some, in order."""
        return [self[i] for i in np.sort(np.unique(self.folder, return_index=True)[1]).tolist()]

    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """A number for each path, the same in every process: a sum of random numbers, one for each byte at its place.

        Two paths share one by a chance of 2^-64.
        """
        folders = np.array([int(_text_hash(folder)) for folder in self.folders], np.uint64)
        result = mix(folders[self.folder]) if len(self) else np.zeros(0, np.uint64)
        starts, ends = self._bounds
        for first in range(0, len(self), _CHUNK):
            low, high = starts[first : first + _CHUNK], ends[first : first + _CHUNK]
            begin, stop = int(low[0]), int(high[-1]) + 1
            text = self._bytes[begin:stop].astype(np.uint64)
            place = np.arange(stop - begin) - np.repeat(low - begin, high - low + 1)
            numbers = mix(text + np.uint64(_LONGEST) * place.astype(np.uint64))
            with np.errstate(over="ignore"):
                result[first : first + _CHUNK] += np.add.reduceat(numbers, low - begin)
        return mix(result)


def encode_names(names: Iterable[str]) -> bytes:
    """Names as `Names` holds them: UTF-8, each ended by a zero byte."""
    return "".join(f"{name}\0" for name in names).encode(errors="surrogateescape")


def mix(values: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Numbers as good as random, one for each (the finaliser of SplitMix64; Steele et al. 2014): a bijection."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(_GOLDEN)
        values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        result: UInt64[np.ndarray, " N"] = values ^ values >> np.uint64(31)
    return result


def _text_hash(text: str) -> np.uint64:
    data = np.frombuffer(text.encode(errors="surrogateescape") + b"\0", np.uint8).astype(np.uint64)
    places = np.arange(len(data), dtype=np.uint64)
    with np.errstate(over="ignore"):
        return np.uint64(np.add.reduce(mix(data + np.uint64(_LONGEST) * places)))
