"""Sources of images by address: a folder, Parquet files in the Hugging Face image layout, shards, or another package's.

A package registers a source as an entry point of the group `unveil.sources`: `name` opens the address `name:...`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped
from torch import Tensor

from ..runs.cache import cached, store
from ..runs.console import user_path
from .columns import GIVEN, split_columns
from .decode import EXTENSIONS, Unreadable, decode, read_header, to_channels
from .encoded import EncodedPicture, encoded_picture
from .file_names import Names, Numbers, as_array
from .folder_source import FolderSource
from .listing import (
    HUB,
    LANCE,
    PICTURES,
    are_shards,
    folder_labels,
    is_parquet,
    kind_of,
    list_files,
    list_matches,
    missing,
    none_found,
    refuse_splits,
    way_from,
)
from .modality_config import Declared
from .read_map import Map
from .tiling import split_tiling
from .transforms import Sample

if TYPE_CHECKING:  # pyarrow is imported where there is a table
    from .table import Rows

_HEADERS_READ = 64  # files that decide how many channels a source has
_CHANNELS = "channels-1"  # that number in the cache
_NEEDED = "Data is a folder of images, a .parquet file, shards (.tar), hf:OWNER/NAME, or scenes"
SOURCES = "unveil.sources"  # the group of entry points

Opener = Callable[[str, tuple[Declared, ...]], "Source"]


class Source(Protocol):
    """Numbered images of one number of channels, with integer labels or none.

    `address` is where it was opened, as the user wrote it. `labels` are the class of each image, -1 where unknown, and
    `classes` their names; either may be None. An image is uint8 in 0..255, or float32 in [0, 1]; a broken one raises
    `Unreadable`. `name` is that of an image in messages.
    """

    @property
    def address(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def labels(self) -> Sequence[int] | None: ...
    @property
    def classes(self) -> list[str] | None: ...
    def __len__(self) -> int: ...
    def image(self, index: int) -> Shaped[Tensor, "C H W"]: ...
    def name(self, index: int) -> str: ...


@runtime_checkable
class EncodedSource(Source, Protocol):
    """A source of files, or of bytes of files: `encoded` is an image before decoding; it may raise `Unreadable`."""

    def encoded(self, index: int) -> bytes: ...


@runtime_checkable
class Samples(Protocol):
    """Numbered samples, each the maps of declared modalities in one frame; `declared` is in the order of the user.

    `sample` raises `Unreadable` when a map of it is broken. `has` says which of the modalities a sample has, and reads
    nothing for it. `complete` are the modalities whose maps are valid at every pixel, wherever there is a map.
    """

    @property
    def address(self) -> str: ...
    @property
    def declared(self) -> tuple[Declared, ...]: ...
    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def sample(self, index: int) -> Sample: ...
    def has(self, index: int) -> tuple[bool, ...]: ...
    def complete(self) -> frozenset[str]: ...


@runtime_checkable
class SampleSource(Samples, Source, Protocol):
    """A source whose samples carry declared maps; `image` is the first of them.

    `read` gives the maps of a sample, each at its own size, or raises `Unreadable`. `settled` is the same source, its
    modalities as the data have settled them.
    """

    def read(self, index: int) -> dict[str, Map]: ...
    def settled(self, declared: tuple[Declared, ...]) -> SampleSource: ...


def open_source(
    address: str | Path, channels: int | None = None, *, as_recorded: bool = False, as_rows: bool = False
) -> Source:
    """The source at an address: a folder of images, Parquet files or shards, a pattern of them, or `scenes:...`.

    Tables are also `hf:owner/name` and `FOLDER.lance`. `photos.parquet:image=left,label=species` names columns; with
    `as_rows` none of a table is chosen. `channels` overrides what the images' headers say: 1 weighs
    colour to grey, 3 repeats grey. Raises FileNotFoundError where nothing is there, `ValueError` where no images are,
    where pictures and Parquet files could both be meant, and, unless it is `as_recorded` in a run, where files are of
    several splits, such as train and test, or several columns hold images.
    """
    text = str(address)
    if channels is not None and channels < 1:
        raise ValueError(f"{channels} channels are too few; give 1 for grey, 3 for colour, or leave it to the images")
    if split_tiling(text)[1] is not None:
        from .tiled_source import open_tiles

        return open_tiles(text, channels=channels)
    if text.partition(":")[0] == GIVEN:
        from .given import open_given

        return open_given(text, (), channels)
    if opener := opener_of(text):
        source = opener(text, ())
        if channels not in (None, source.channels):
            raise ValueError(f"{text} has {source.channels} channels, not {channels}; leave the number out")
        return source
    place, columns = split_columns(text)
    if are_shards(place):
        return _open_shards(text, channels, as_recorded)
    path = user_path(place)
    if (rows := _other_rows(place)) is not None:
        return _open_table(text, rows, channels, Counter(), as_recorded, as_rows)
    if path.is_dir():
        root, (files, others) = path, list_files(path, PICTURES)
        if not files and others[".tar"]:
            return _open_shards(text, channels, as_recorded)
    elif is_parquet(path.name) and path.exists():
        root, files, others = path.parent, Names.of([path.name]), Counter[str]()
    elif path.exists():
        kind = kind_of(path.name)
        advice = "give the folder it is in" if kind in EXTENSIONS else way_from([kind])
        advice = advice or "no images are read from such a file"
        raise ValueError(f"{text!r} is a file: {advice}. {_NEEDED}")
    else:
        root, files, others = list_matches(path, PICTURES)
        if not files and not others:
            raise FileNotFoundError(missing(path, _NEEDED))
    if not files:
        raise ValueError(f"no images in {text!r}: {none_found(others, PICTURES)}")
    are_tables = files.end_with(".parquet")
    shards = files.take(are_tables)
    if shards and columns.flags:  # so they are meant, whatever lies beside them
        others.update(map(kind_of, files.take(~are_tables)))
        files = shards
    if 0 < len(shards) < len(files):
        picture = files[int(are_tables.argmin())]
        raise ValueError(
            f"{text!r} holds {len(files) - len(shards)} pictures, such as {picture}, and {len(shards)} Parquet files,"
            f" such as {shards[0]}: which are the data? Give {str(root / '**/*.parquet')!r},"
            f" {str(root / '**' / ('*' + Path(picture).suffix))!r}, or the folder of either"
        )
    if not as_recorded:
        refuse_splits(text, root, files)
    if shards:
        from .parquet import ParquetRows

        rows = ParquetRows([root / name for name in shards])
        return _open_table(text, rows, channels, others, as_recorded, as_rows)
    if columns.flags:
        raise ValueError(
            f"{columns.flags} names a column of Parquet files, and {place!r} holds pictures; leave it out, or write it"
            " into the address of the table alone, FILE.parquet:image=NAME,label=NAME"
        )
    labels, classes = folder_labels(files)
    source = FolderSource(text, root, files, channels or 3, labels, classes, others)
    return source if channels else replace(source, channels=most_common_channels(source))


@dataclass(frozen=True)
class Subset:
    """Some of the images of a source, in the order of `indices`."""

    source: Source
    indices: Sequence[int] = field(repr=False)

    @property
    def address(self) -> str:
        """The address of the whole and how much of it this is."""
        return f"{self.source.address} ({len(self)} of {len(self.source)})"

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def labels(self) -> Sequence[int] | None:
        labels = self.source.labels
        if isinstance(labels, Numbers):
            return Numbers(labels.array[as_array(self.indices)])
        return None if labels is None else [labels[i] for i in self.indices]

    @property
    def classes(self) -> list[str] | None:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        return self.source.image(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])


def most_common_channels(source: EncodedSource) -> int:
    """How many channels most images have, of 64 evenly spread; 3 where none can be read (decoding says why).

    It is cached for as long as these files stay as they are.
    """
    rows = spread(len(source), _HEADERS_READ)
    stamps = source.stamps(np.array(rows)) if isinstance(source, FolderSource) else np.zeros(1, np.uint64)
    key = f"{getattr(source, 'place', source.address)} {stamps.tobytes().hex()}"
    if stamps.all() and (known := cached(_CHANNELS, key)) is not None:
        return int(known)
    counts: Counter[int] = Counter()
    for i in rows:
        with suppress(Unreadable):
            counts[read_header(source.encoded(i), source.name(i)).channels] += 1
    # A tie goes to more channels: grey is repeated, colour is not lost.
    most = max(counts, key=lambda c: (counts[c], c), default=3)
    if stamps.all() and counts:
        store(_CHANNELS, key, str(most).encode())
    return most


def names_of(source: Source | Samples) -> Sequence[str]:
    """The names of all samples, made as they are read where the source holds them in compact form."""
    names = getattr(source, "names", None)
    return names if isinstance(names, Names) else [source.name(i) for i in range(len(source))]


def spread(n: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0..n-1, evenly spread."""
    count = min(n, limit)
    return [k * n // count for k in range(count)]


def class_name(source: Source, label: int) -> str:
    """The name of a class; its number where classes have no names."""
    return source.classes[label] if source.classes else str(label)


def class_of(source: Source, index: int) -> str | None:
    """The name of an image's class; None without labels."""
    has_label = source.labels is not None and source.labels[index] >= 0
    return class_name(source, source.labels[index]) if has_label and source.labels is not None else None


def _open_table(
    address: str, rows: Rows, channels: int | None, others: Counter[str], as_recorded: bool, as_rows: bool
) -> Source:
    from .table import TableSource

    columns = split_columns(address)[1]
    source = TableSource(address, rows, channels or 3, others, columns, as_recorded=as_recorded, as_rows=as_rows)
    if channels is None and not as_rows:
        source.channels = most_common_channels(source)
    return source


def _other_rows(place: str) -> Rows | None:
    """The rows of a data set of the Hub or of a Lance file; None for any other address."""
    if place.startswith(HUB):
        from .hub_datasets import hub_rows

        return hub_rows(place)
    path = user_path(place)
    if path.suffix.lower() == LANCE and path.is_dir():
        from .lance_files import LanceRows

        return LanceRows(path)
    return None


def _open_shards(address: str, channels: int | None, as_recorded: bool) -> Source:
    from .shards import open_shards

    source = open_shards(address, channels, as_recorded=as_recorded)
    if channels is None and not source.shards.facts:
        return replace(source, channels=most_common_channels(source))
    return source


def origin(source: Source | Samples) -> tuple[Source | Samples, Sequence[int]]:
    """The source below any subsets, and which of its samples these are."""
    if not isinstance(source, Subset):
        return source, range(len(source))
    numbers, source = source.indices, source.source
    while isinstance(source, Subset):
        numbers, source = Numbers(as_array(source.indices)[as_array(numbers)]), source.source
    return source, numbers


def images_of(source: Source, name: str) -> Callable[[int], Sample]:
    """A reader of the images of a source, each as a sample of one map of this name; of declared maps the first."""
    whole, numbers = origin(source)
    if not isinstance(whole, SampleSource):
        return lambda index: Sample({name: source.image(index)})
    first, images = whole.declared[0].name, whole.settled(whole.declared[:1])

    def read(index: int) -> Sample:
        if not images.has(numbers[index])[0]:
            raise Unreadable(source.name(index), f"has no file of {first}")
        sample = images.sample(numbers[index])
        return Sample({name: sample.maps[first]}, {name: sample.valid[first]} if first in sample.valid else {})

    return read


def encoded_images_of(source: Source | Samples, name: str) -> Callable[[int], Sample | EncodedPicture] | None:
    """As `images_of`, but a plain JPEG stays encoded until it is viewed; None unless it is a source of files."""
    whole, numbers = origin(source)
    if not isinstance(whole, EncodedSource) or isinstance(whole, Samples):
        return None
    files = whole

    def read(index: int) -> Sample | EncodedPicture:
        number = numbers[index]
        data, called = files.encoded(number), files.name(number)
        picture = encoded_picture(name, called, data, files.channels)
        return picture or Sample({name: to_channels(decode(data, called), files.channels, called)})

    return read


def sampler(source: Source | Samples, name: str) -> Callable[[int], Sample]:
    """A reader of the samples of a source; an image of a plain one becomes the map of this name."""
    whole, numbers = origin(source)
    if isinstance(whole, Samples):
        read = whole.sample
        return lambda index: read(numbers[index])
    return images_of(cast("Source", source), name)


def coverage(source: Source | Samples) -> tuple[set[str] | None, frozenset[str]]:
    """The modalities that some samples lack, and those whose maps are valid at every pixel; None of a plain source."""
    whole = origin(source)[0]
    if not isinstance(whole, Samples):
        return None, frozenset()
    somewhere = np.logical_not(presence(source)).any(axis=0)
    return {whole.declared[m].name for m in np.flatnonzero(somewhere)}, whole.complete()


def presence(source: Source | Samples) -> Bool[np.ndarray, "N M"]:
    """Which of its declared modalities each sample has."""
    whole, numbers = origin(source)
    assert isinstance(whole, Samples)
    known = getattr(whole, "presence", None)
    if known is not None:
        return cast("Bool[np.ndarray, 'N M']", known[as_array(numbers)])
    rows = np.fromiter((has for i in numbers for has in whole.has(i)), np.bool_)
    return rows.reshape(len(numbers), len(whole.declared))


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=SOURCES)}


def opener_of(address: str) -> Opener | None:
    """What opens an address whose first word is a registered name; None for any other address.

    It is called with the address and the declared modalities; with none it returns a source of images, else a
    `SampleSource`.
    """
    if address.partition(":")[0] == GIVEN:
        from .given import open_given

        return open_given
    point = _registered().get(address.partition(":")[0])
    return None if point is None else point.load()
