"""Data given in Python: arrays, pictures, torch and Hugging Face data sets, alone or one for each modality.

Each gets an address, `python:array-1f2e...`, that this process opens like any other; it is what run.json records. Its
digits are a fingerprint of the content: the same data have the same address in the next process, once given again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..modeling.types import RGB
from .columns import GIVEN, split_columns
from .given_items import LABELS, GivenImages, GivenSamples, Items, Part, content_of, is_kept_in_memory
from .modality_config import BUILT_IN, Declared
from .sources import Source, spread

_LOOKED_AT = 64  # items that stand for a data set in its fingerprint
_ALL_BELOW = 1 << 30  # bytes of an array that its fingerprint reads as a whole
_KINDS = (
    "an address, an array or tensor of images, a list of pictures, (images, labels), a torch or Hugging Face Dataset,"
    " or a mapping of one of these for each modality"
)


@dataclass(frozen=True)
class _Given:
    """Data in the memory of this process: pictures by modality (the name of plain ones is empty), and labels."""

    kind: str
    maps: Mapping[str, Items] = field(repr=False)
    labels: Any = field(default=None, repr=False)
    rows: Any = field(default=None, repr=False)  # a data set of the Hugging Face library, in place of both

    def __len__(self) -> int:
        return len(self.rows) if self.rows is not None else len(next(iter(self.maps.values())))


_known: dict[str, _Given] = {}


def address_of(data: object) -> str:
    """The address of data given in Python; this process holds them from now on.

    Raises TypeError for what is no data, ValueError for data whose parts differ in length, that are empty, or that are
    not the same when they are read twice.
    """
    given = _given(data)
    if not len(given):
        raise ValueError(f"the {given.kind} given as data is empty; at least one image is needed")
    address = f"{GIVEN}:{given.kind}-{_fingerprint(given)}"
    _known.setdefault(address, given)
    return address


def given_modalities(address: str) -> tuple[Declared, ...]:
    """The modalities of data that were given as a mapping; none of other data."""
    given = _known.get(split_columns(address)[0])
    return tuple(BUILT_IN[name] for name in given.maps if name in BUILT_IN) if given and "" not in given.maps else ()


def open_given(address: str, declared: tuple[Declared, ...], channels: int | None = None) -> Source:
    """What an address of `address_of` holds: images, with so many channels, or samples of the declared maps.

    Raises ValueError where this process does not have these data, and for a modality that they lack.
    """
    place, columns = split_columns(address)
    given = _known.get(place)
    if given is None:
        raise ValueError(
            f"{place} are data that were given in Python, and this process does not have them: give the same data"
            " again (data=...) in Python; images in files are found again by their address"
        )
    if given.rows is not None:
        return _table(address, given, declared, channels)
    if columns.flags:
        raise ValueError(f"{columns.flags} names a column of a table, and the data given are none; leave it out")
    return _opened(place, given, declared, channels)


def pictures_given(pictures: object, declared: tuple[Declared, ...], channels: int | None = None) -> Source:
    """A few pictures, one or a list of them, or such for each modality, as a source for this once.

    Modalities that are not given are missing; pictures that are no mapping are the first input.
    """
    inputs = [d.name for d in declared if d.modality.role != "output"]
    if isinstance(pictures, Mapping):
        maps = {str(name): _several(value) for name, value in pictures.items()}
        if unknown := [name for name in maps if name not in {d.name for d in declared} | ({"rgb"} - {*inputs})]:
            raise ValueError(f"there is no modality {unknown[0]!r} to give; there are {', '.join(inputs) or 'rgb'}")
    else:
        if isinstance(pictures, np.ndarray) and pictures.ndim == 3 and pictures.shape[0] == 3 < pictures.shape[2] - 1:
            raise ValueError(
                f"an array of the shape {pictures.shape} may be an image with its channels first, or 3 grey images;"
                " give array.transpose(1, 2, 0), or list(array)"
            )
        maps = {inputs[0] if declared else "": _several(pictures)}
    given = _of_mapping(maps)
    missing = {d.name: [None] * len(given) for d in declared if d.name not in maps}
    return _opened("the images given", _Given("list", {**given.maps, **missing}), declared, channels)


def _several(pictures: Any) -> Any:
    """One picture as a list of one."""
    if isinstance(pictures, (str, Path, Image.Image)):
        return [pictures]
    if isinstance(pictures, (np.ndarray, Tensor)):
        is_colour = pictures.shape[-1 if isinstance(pictures, np.ndarray) else 0] in (1, 2, 3, 4)
        if pictures.ndim == 2 or (pictures.ndim == 3 and is_colour):
            return [pictures]
    return list(pictures) if isinstance(pictures, tuple) else pictures


def _opened(place: str, given: _Given, declared: tuple[Declared, ...], channels: int | None) -> Source:
    if not declared:
        images = given.maps.get("", given.maps.get(RGB.name, next(iter(given.maps.values()))))
        source = GivenImages(place, images, given.labels, channels or 3, is_kept=is_kept_in_memory(images))
        return source if channels else replace(source, channels=source.own_channels)
    maps = {declared[0].name if name == "" else name: items for name, items in given.maps.items()}
    if lacking := [d.name for d in declared if d.name not in maps]:
        there = ", ".join(maps) if "" not in given.maps else "images alone"
        raise ValueError(
            f"the data given have no {lacking[0]}: there are {there}; give a mapping with one for each modality, or"
            f" other modalities than {' '.join(d.name for d in declared)}"
        )
    return GivenSamples(place, {d.name: maps[d.name] for d in declared}, declared, given.labels)


def _table(address: str, given: _Given, declared: tuple[Declared, ...], channels: int | None) -> Source:
    """The rows of a data set of the Hugging Face library: encoded images, as those of `hf:OWNER/NAME`."""
    from .hub_datasets import HubRows
    from .sources import most_common_channels
    from .table import TableSource
    from .table_samples import open_table_samples

    place, columns = split_columns(address)
    rows = HubRows(given.rows, place, str(given.rows.split or "data"))
    source = TableSource(address, rows, channels or 3, columns=columns, as_rows=bool(declared))
    if declared:
        return open_table_samples(address, declared, source=source)
    if channels is None:
        source.channels = most_common_channels(source)
    return source


def _given(data: object) -> _Given:
    if isinstance(data, Mapping):
        if hasattr(data, "keys") and all(_is_rows(split) for split in data.values()) and data:
            splits = ", ".join(map(str, data))
            raise ValueError(
                f"a data set of the splits {splits} was given; give one of them, data[{next(iter(data))!r}]"
            )
        return _of_mapping(data)
    if _is_rows(data):
        rows: Any = data
        return _Given("hf", {}, rows=rows.flatten_indices() if rows._indices is not None else rows)
    labels = None
    if isinstance(data, tuple) and len(data) == 2 and _is_column(data[1]):
        data, labels = data
    items = _items(data)
    if isinstance(first := items[0] if len(items) else None, Mapping):
        names = [name for name in first if name not in LABELS]
        if len(names) > 1 or names[0] in BUILT_IN:
            return _Given("dataset", {name: Part(items, name) for name in names}, labels)
    return _of_mapping({"": items}, labels)


def _of_mapping(data: Mapping[str, Any], labels: Any = None) -> _Given:
    maps = {str(name): _items(value) for name, value in data.items() if name not in LABELS}
    labels = next((data[name] for name in LABELS if name in data), labels)
    lengths = {name or "images": len(items) for name, items in maps.items()}
    lengths |= {} if labels is None else {"labels": len(labels)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise ValueError(f"the parts of the data given differ in length ({told}); give as many of each")
    kinds = {
        "array" if isinstance(m, (np.ndarray, Tensor)) else "list" if is_kept_in_memory(m) else "dataset"
        for m in maps.values()
    }
    return _Given(min(kinds, default="list"), maps, labels)


def _items(data: Any) -> Items:
    if isinstance(data, (str, Path)) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        what = f"a {type(data).__name__}"
        if hasattr(data, "__iter__") and not isinstance(data, (str, Path)):
            what += ", which has no length and no items by number (a map-style Dataset has both)"
        raise TypeError(f"data is {what}; give {_KINDS}")
    if isinstance(data, np.ndarray) and data.ndim == 4 and data.shape[1] in (1, 3) and data.shape[3] > 4:
        raise ValueError(
            f"an array of the shape {data.shape} has {data.shape[3]} channels, for NumPy's are N H W C; give"
            " array.transpose(0, 2, 3, 1), or a tensor, which is N C H W"
        )
    if isinstance(data, (np.ndarray, Tensor)) and data.ndim not in (3, 4):
        raise ValueError(
            f"images of the shape {tuple(data.shape)}: N H W (C) of an array, N C H W of a tensor are needed"
        )
    if isinstance(data, Tensor) and data.ndim == 3:
        return data[:, None]
    items: Items = list(data) if isinstance(data, tuple) else data
    return items


def _is_rows(data: object) -> bool:
    """Whether it is a data set of the Hugging Face library, which is known without importing it."""
    return all(hasattr(data, name) for name in ("features", "_indices", "flatten_indices", "data"))


def _is_column(values: object) -> bool:
    """Whether values may be labels: as many numbers or words."""
    if isinstance(values, (np.ndarray, Tensor)):
        return values.ndim == 1
    return isinstance(values, (list, tuple)) and all(isinstance(v, (int, str, np.integer)) for v in values)


def _fingerprint(given: _Given) -> str:
    """16 digits of the content: of an array of all, of other data of 64 items, evenly spread, and of the labels."""
    digest = hashlib.blake2b(str(len(given)).encode(), digest_size=8)
    maps = {"": given.rows} if given.rows is not None else given.maps
    for name, items in maps.items():
        digest.update(name.encode())
        if isinstance(items, (np.ndarray, Tensor)):
            array = items.detach().cpu().numpy() if isinstance(items, Tensor) else items
            step = max(1, array.nbytes // _ALL_BELOW)
            digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array[::step]).tobytes())
            continue
        for index in spread(len(items), _LOOKED_AT):
            content = _row(items, index) if given.rows is not None else content_of(items[index])
            if index == 0 and given.rows is None and not is_kept_in_memory(items) and content_of(items[0]) != content:
                raise ValueError(
                    "the data set given as data is another one each time it is read (item 0 differs): leave out its"
                    " random transforms, for views are drawn in training (--crop-scale, --flip)"
                )
            digest.update(content)
    if given.labels is not None:
        digest.update(str([v.item() if hasattr(v, "item") else v for v in given.labels]).encode())
    return digest.hexdigest()


def _row(rows: Any, index: int) -> bytes:
    """A row as the library stores it, before any decoding."""
    return repr(rows.data.slice(index, 1).to_pylist()).encode()
