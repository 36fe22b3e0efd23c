"""The headers of many files: read by several threads, once, and cached for as long as the files stay as they are."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int, Int16, Int32, Int64, UInt64
from torch import Tensor

from ..modeling.types import to_float
from ..runs.cache import cached, store
from ..runs.hardware import num_cores
from ..runs.run_config import Check
from .cut_files import check_whole, may_be_cut
from .decode import Header, Unreadable, decode, read_header, to_channels
from .file_ends import Ends
from .file_names import Names, as_array
from .identity import ends_of, identity
from .prefetch import prefetch
from .sources import EncodedSource, Samples, Source, origin, spread
from .strips import in_strips

T = TypeVar("T")
SAMPLED = 100_000  # headers that are read of more files than that, unless all are asked for
_HEADERS, _MOMENTS = "headers-2", "moments-2"  # kinds of entries of the cache, and the versions of their formats
_AT_ONCE = 64  # files that a thread reads before it answers
_READERS = 8  # threads at least, for they wait for the disk
_STRIP = 1 << 22  # pixels in double precision at once
_STALE = 4_000_000  # entries of a cache, beyond which those of files that are not there any more go


@dataclass(frozen=True)
class Headers:
    """What the headers of the samples `rows` hold; `kind` is their place among `kinds`, -1 where one is unreadable.

    `kinds` are headers whose size counts for nothing, `size` has height and width, `identities` stand for contents.
    """

    rows: Int64[np.ndarray, " K"]
    kinds: list[Header]
    kind: Int16[np.ndarray, " K"]
    size: Int32[np.ndarray, "K 2"]
    identities: UInt64[np.ndarray, " K"]
    unreadable: dict[int, str]

    def count(self, what: Callable[[Header], T]) -> dict[T, int]:
        """How many readable files have each value of a fact, the most frequent first."""
        numbers, first, counts = np.unique(self.kind[self.kind >= 0], return_index=True, return_counts=True)
        tally: Counter[T] = Counter()
        for k in first.argsort():
            tally[what(self.kinds[numbers[k]])] += int(counts[k])
        return dict(tally.most_common())


def to_check(source: Source, check: Check) -> Int64[np.ndarray, " K"]:
    """The samples whose headers are read: all up to 100,000, else so many of them, the same when some are added."""
    count = len(source)
    if check == "none":
        return np.zeros(0, np.int64)
    if check == "all" or count <= SAMPLED:
        return np.arange(count)
    names = getattr(source, "names", None)
    if not isinstance(names, Names):
        return np.array(spread(count, SAMPLED), np.int64)
    return np.sort(np.argpartition(names.hashes(), SAMPLED)[:SAMPLED])


def read_headers(source: Source, rows: Int64[np.ndarray, " K"]) -> Headers:
    """The headers of some samples of a source of files, from the cache where the files have not changed since."""
    whole, numbers = origin(source)
    assert isinstance(whole, EncodedSource)
    own = as_array(numbers)[rows]
    stamps = _stamps(whole, own)
    kinds: dict[Header, int] = {}
    facts = np.zeros(len(rows), [("kind", np.int16), ("size", np.int32, 2), ("identity", np.uint64)])
    facts["kind"] = -1
    known = _Known.load(_HEADERS, _place(whole), stamps)
    if known is not None:
        names = known.text.split("\n") if known.text else []
        kinds = {_header(line): k for k, line in enumerate(names)}
        facts[known.rows] = known.values
    missing = np.flatnonzero(facts["kind"] < 0)
    unreadable: dict[int, str] = {}
    jobs = [partial(_read_some, whole, own[some].tolist()) for some in _portions(missing)]
    with closing(prefetch(jobs, 4 * _READERS, max(num_cores(), _READERS))) as results:
        for some, read in zip(_portions(missing), results, strict=True):
            for place, one in zip(some.tolist(), read, strict=True):
                if isinstance(one, str):
                    unreadable[int(rows[place])] = one
                else:
                    header, number, cut = one
                    if cut:
                        unreadable[int(rows[place])] = cut
                    kind = kinds.setdefault(replace(header, size=(0, 0)), len(kinds))
                    facts[place] = kind, header.size, number
    if len(missing) > len(unreadable):
        good = (facts["kind"] >= 0) & ~np.isin(rows, list(unreadable))  # a cut file has a header
        is_whole = len(rows) == len(whole)
        _Known.save(_HEADERS, _place(whole), stamps[good], facts[good], "\n".join(map(_line, kinds)), is_whole)
    return Headers(rows, list(kinds), facts["kind"], facts["size"], facts["identity"], unreadable)


def pixel_moments(source: Source, rows: Int64[np.ndarray, " K"]) -> tuple[Float64[np.ndarray, "K 2 C"], dict[int, str]]:
    """The mean and the mean square of the pixels of some images, per channel, and why others cannot be read (NaN)."""
    whole, numbers = origin(source)
    assert isinstance(whole, EncodedSource)
    values = np.full((len(rows), 2, source.channels), np.nan)
    stamps, place = _stamps(whole, as_array(numbers)[rows]), f"{_place(whole)} {source.channels}"
    if (known := _Known.load(_MOMENTS, place, stamps)) is not None:
        values[known.rows] = known.values
    missing = np.flatnonzero(np.isnan(values[:, 0, 0]))
    unreadable: dict[int, str] = {}
    jobs = (partial(_moments_of, source, int(rows[k])) for k in missing)
    with closing(prefetch(jobs, 4 * num_cores())) as results:
        for k, one in zip(missing.tolist(), results, strict=True):
            if isinstance(one, str):
                unreadable[int(rows[k])] = one
            else:
                values[k] = one
    if len(missing) > len(unreadable):
        good = ~np.isnan(values[:, 0, 0])
        _Known.save(_MOMENTS, place, stamps[good], values[good], "", is_whole=False)
    return values, unreadable


def look_at_rendered(source: Source, rows: Int64[np.ndarray, " K"]) -> tuple[Float64[np.ndarray, "K 2 C"], Headers]:
    """Moments and headers of images that no file holds; those that cannot be made are unreadable."""

    def look(index: int) -> tuple[Float64[np.ndarray, "2 C"], Header] | str:
        try:
            image = source.image(index)
        except Unreadable as error:
            return error.reason
        size = (image.shape[-2], image.shape[-1])
        return moments(image), Header("", "made here", size, len(image), 8 * image.element_size(), has_alpha=False)

    values, kinds = np.full((len(rows), 2, source.channels), np.nan), dict[Header, int]()
    kind, sizes, unreadable = np.full(len(rows), -1, np.int16), np.zeros((len(rows), 2), np.int32), dict[int, str]()
    with closing(prefetch((partial(look, row) for row in rows.tolist()), 4 * num_cores())) as results:
        for place, one in enumerate(results):
            if isinstance(one, str):
                unreadable[int(rows[place])] = one
                continue
            values[place], header = one
            sizes[place] = header.size
            kind[place] = kinds.setdefault(replace(header, size=(0, 0)), len(kinds))
    return values, Headers(rows, list(kinds), kind, sizes, np.zeros(len(rows), np.uint64), unreadable)


def mean_std(values: Float64[np.ndarray, "K 2 C"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from the moments of images that weigh the same; 0 of none."""
    total = np.zeros(values.shape[1:])
    for one in values:  # in order, so that the roundings are the same wherever they come from
        total += one
    mean, square = total / max(len(values), 1)
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist())


def moments(image: Tensor) -> Float64[np.ndarray, "2 C"]:
    """The mean of an image and of its squares, per channel, in double precision."""
    count = image[0].numel()
    lines = max(1, _STRIP * image.shape[1] // max(1, count))
    return _sums(image.split(lines, dim=1), len(image), count)


def _sums(strips: Iterable[Tensor], channels: int, count: int) -> Float64[np.ndarray, "2 C"]:
    """The same of the strips of an image of so many pixels, for in double precision it takes eight times its memory."""
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for some in strips:
        strip = some.flatten(1)
        share, values = strip.shape[1] / count, to_float(strip).double()
        sums += torch.stack([values.mean(1), values.square().mean(1)]) * share
    return sums.numpy()


def _moments_of(source: Source, index: int) -> Float64[np.ndarray, "2 C"] | str:
    whole, numbers = origin(source)
    try:
        if isinstance(whole, EncodedSource) and not isinstance(whole, Samples):
            data, name = whole.encoded(numbers[index]), whole.name(numbers[index])
            if (strips := in_strips(data, name, whole.channels, _STRIP // 8)) is not None:
                return _sums(strips, whole.channels, math.prod(read_header(data, name).size))
            return moments(to_channels(decode(data, name), whole.channels, name))  # the file is read once
        return moments(source.image(index))
    except Unreadable as error:
        return error.reason


def _portions(missing: Int[np.ndarray, " M"]) -> list[Int[np.ndarray, " m"]]:
    return [missing[start : start + _AT_ONCE] for start in range(0, len(missing), _AT_ONCE)]


def _read_some(source: EncodedSource, numbers: Sequence[int]) -> list[tuple[Header, int, str] | str]:
    return [_read(source, number) for number in numbers]


def _read(source: EncodedSource, number: int) -> tuple[Header, int, str] | str:
    """Header and identity of a sample, from the ends of its file where they tell, and why it is not whole, if so.

    Alone why, where its header cannot be read.
    """
    name = source.name(number)
    try:
        ends = ends_of(source, number)
        cut = _why_cut(source, number, ends)
        try:
            return read_header(ends.start, name), identity(ends), cut
        except Unreadable:
            if ends.is_whole:
                raise
            return read_header(source.encoded(number), name), identity(ends), cut  # what it tells lies further back
    except Unreadable as error:
        return error.reason


def _why_cut(source: EncodedSource, number: int, ends: Ends) -> str:
    """Why a file is not whole; empty for one that is, so far as its ends tell."""
    if not ends.start or (not ends.is_whole and not may_be_cut(ends.start, ends.stop)):
        return ""
    try:
        check_whole(ends.start if ends.is_whole else source.encoded(number))
    except ValueError as error:
        return error.reason if isinstance(error, Unreadable) else str(error)
    return ""


def _stamps(source: Source, numbers: Int[np.ndarray, " K"]) -> UInt64[np.ndarray, " K"]:
    """A number for each sample that changes when its file does; 0 where that is not known."""
    make = getattr(source, "stamps", None)
    return np.zeros(len(numbers), np.uint64) if make is None else make(numbers)


def _place(source: Source) -> str:
    return str(getattr(source, "place", source.address))


def _line(header: Header) -> str:
    return "\t".join(map(str, astuple(replace(header, size=(0, 0)))))


def _header(line: str) -> Header:
    format_, mode, _, channels, bits, has_alpha = line.split("\t")
    return Header(format_, mode, (0, 0), int(channels), int(bits), has_alpha == "True")


@dataclass(frozen=True)
class _Known:
    """What the cache holds of some samples: their places among the stamps asked for, their values, and a text."""

    rows: Int64[np.ndarray, " K"]
    values: np.ndarray
    text: str

    @classmethod
    def load(cls, kind: str, place: str, stamps: UInt64[np.ndarray, " N"]) -> _Known | None:
        if (entry := _entry(kind, place)) is None or not len(entry[0]):
            return None
        own, values, text = entry
        where = np.minimum(np.searchsorted(own, stamps), len(own) - 1)
        rows = np.flatnonzero((own[where] == stamps) & (stamps != 0))
        return cls(rows, values[where[rows]], text)

    @staticmethod
    def save(
        kind: str, place: str, stamps: UInt64[np.ndarray, " N"], values: np.ndarray, text: str, is_whole: bool
    ) -> None:
        """Add to what is cached; of a whole source, or where it has become too much, instead of it."""
        stamps, values = stamps[stamps != 0], values[stamps != 0]
        entry = _entry(kind, place)
        is_alike = entry is not None and entry[1].dtype == values.dtype and text.startswith(entry[2])
        if entry is not None and is_alike and not is_whole and len(entry[0]) < _STALE:
            stamps, values = np.concatenate([stamps, entry[0]]), np.concatenate([values, entry[1]])
        stamps, first = np.unique(stamps, return_index=True)
        buffer = io.BytesIO()
        np.savez(buffer, stamps=stamps, values=values[first], text=np.array(text))
        store(kind, place, buffer.getvalue())


def _entry(kind: str, place: str) -> tuple[UInt64[np.ndarray, " N"], np.ndarray, str] | None:
    content = cached(kind, place)
    if content is None:
        return None
    with np.load(io.BytesIO(content)) as arrays:  # checked by its checksum
        return arrays["stamps"], arrays["values"], str(arrays["text"])
