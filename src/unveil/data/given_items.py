"""Pictures and maps in memory, or in a data set of Python's, as sources of images and of samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt64
from PIL import Image
from torch import Tensor

from ..modeling.types import RGB
from ..runs.console import user_path
from .columns import number_classes
from .decode import Unreadable, to_channels
from .given_types import Items
from .image_transform import Picture, pixels_of_picture
from .modality_config import Declared
from .picture_arrays import array_of
from .read_map import Map, Stored, map_of, read_map
from .source_bases import DeclaredSamples
from .sources import spread

_IMAGES, LABELS = ("image", "img", "images", "pixel_values"), ("label", "labels", "target", "class")


@dataclass(frozen=True)
class GivenImages:
    """Pictures in memory or of a data set, with labels where there are any; `is_kept`: reading them costs nothing."""

    address: str
    items: Items = field(repr=False)
    given_labels: Any = field(default=None, repr=False)
    channels: int = 3
    is_kept: bool = True

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        return to_channels(self._pixels(index), self.channels, self.name(index))

    def _pixels(self, index: int) -> Shaped[Tensor, "C H W"]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        picture = _image_in(self.items[index])
        if not isinstance(picture, (str, Path, Image.Image, np.ndarray, Tensor)):
            what = type(picture).__name__
            raise Unreadable(self.name(index), f"is a {what}; a path, a Pillow image, an array or a tensor is needed")
        try:
            return pixels_of_picture(picture, RGB)
        except (OSError, Unreadable) as error:
            raise Unreadable(self.name(index), getattr(error, "reason", None) or str(error)) from error

    def name(self, index: int) -> str:
        item = _image_in(self.items[index]) if self.is_kept else None
        return str(item) if isinstance(item, (str, Path)) else f"[{index}]"

    @cached_property
    def own_channels(self) -> int:
        """How many channels most of 16 images have."""
        counts: Counter[int] = Counter()
        for index in spread(len(self), 16):
            try:
                counts[len(self._pixels(index))] += 1
            except Unreadable:
                continue
        return max(counts, key=lambda c: (counts[c], c), default=3)

    @cached_property
    def identities(self) -> UInt64[np.ndarray, " N"]:
        """A number for each image: of its pixels where they are in memory, else of its place in the data."""
        places = range(len(self))
        of = (content_of(self.items[i]) if self.is_kept else f"{self.address}#{i}".encode() for i in places)
        return np.array([int.from_bytes(hashlib.blake2b(c, digest_size=8).digest(), "big") for c in of], np.uint64)

    @cached_property
    def _labelled(self) -> tuple[Sequence[int] | None, list[str] | None]:
        return _labels_of(self.items, self.given_labels)

    @property
    def labels(self) -> Sequence[int] | None:
        return self._labelled[0]

    @property
    def classes(self) -> list[str] | None:
        return self._labelled[1]

    @property
    def unlabelled(self) -> str:
        """What to give so that such data have labels, for a message."""
        return "give (images, labels), or a Dataset whose items are (image, label) or have `image` and `label`"


@dataclass(frozen=True)
class GivenSamples(DeclaredSamples):
    """Samples of several maps in memory or of a data set; an item that is None is a map that its sample lacks."""

    address: str
    maps: Mapping[str, Items] = field(repr=False)
    declared: tuple[Declared, ...]
    given_labels: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.maps.values())))

    def name(self, index: int) -> str:
        return f"[{index}]"

    def has(self, index: int) -> tuple[bool, ...]:
        return tuple(not isinstance(m := self.maps[d.name], list) or m[index] is not None for d in self.declared)

    def complete(self) -> frozenset[str]:
        return frozenset()

    @cached_property
    def _labelled(self) -> tuple[Sequence[int] | None, list[str] | None]:
        return _labels_of(next(iter(self.maps.values())), self.given_labels)

    @property
    def labels(self) -> Sequence[int] | None:
        return self._labelled[0]

    @property
    def classes(self) -> list[str] | None:
        return self._labelled[1]

    def _map(self, index: int, declared: Declared) -> Map:
        return map_given(_image_in(self.maps[declared.name][index]), declared, f"{self.name(index)}.{declared.name}")


def map_given(picture: Picture, declared: Declared, name: str) -> Map:
    """A picture, an array or the path of a file as the map of a modality, in its unit. Raises `Unreadable`."""
    try:
        if isinstance(picture, (str, Path)):
            return read_map(user_path(picture).read_bytes(), declared, name)
        if declared.name == RGB.name:
            pixels = to_channels(pixels_of_picture(picture, RGB), declared.modality.channels, name)
            return Map(pixels, None, f"{picture.__class__.__name__}", is_picture=True)
        array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
        array = array_of(array) if isinstance(array, Image.Image) else np.asarray(array)
        if array.ndim == 2:
            array = array[None]
        elif array.ndim == 3 and len(array) != declared.modality.channels:
            array = array.transpose(2, 0, 1)
        if array.ndim != 3 or array.dtype.kind not in "biuf":
            raise ValueError(f"an array of {array.dtype} {array.shape} is no map; H W or C H W numbers are needed")
        return map_of(Stored(np.array(array, order="C"), f"{array.dtype} array"), declared)
    except (OSError, TypeError, ValueError) as error:
        raise Unreadable(name, getattr(error, "reason", None) or str(error)) from error


@dataclass(frozen=True)
class Part:
    """One entry of the items of a data set, which are mappings."""

    items: Items
    name: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        label = next((item[name] for name in LABELS if name in item), None)
        return (item.get(self.name), label) if label is not None else item.get(self.name)


def is_kept_in_memory(items: Items) -> bool:
    """Whether the items are in memory, so that they can be read often."""
    return isinstance(items, (np.ndarray, Tensor, list))


def _image_in(item: Any) -> Any:
    """The picture of an item that may hold its label too."""
    if isinstance(item, Mapping):
        return next((item[name] for name in _IMAGES if name in item), None)
    return item[0] if isinstance(item, (tuple, list)) and len(item) else item


def _label_in(item: Any) -> Any:
    if isinstance(item, Mapping):
        return next((item[name] for name in LABELS if name in item), None)
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


def _labels_of(items: Items, given: Any) -> tuple[Sequence[int] | None, list[str] | None]:
    """The classes of items, as they were given, as a data set lists them (`targets`), or as its items hold them."""
    inner = items.items if isinstance(items, Part) else items
    names = getattr(inner, "classes", None)
    values = given if given is not None else getattr(inner, "targets", None)
    if values is None:
        if isinstance(items, (np.ndarray, Tensor)) or not len(items) or _label_in(items[0]) is None:
            return None, None
        values = [_label_in(items[i]) for i in range(len(items))]
    plain = [v.item() if hasattr(v, "item") else v for v in values]
    known = list(map(str, names)) if isinstance(names, (list, tuple)) else None
    return number_classes(plain, known, is_named=True)


def content_of(item: Any) -> bytes:
    """What stands for an item: the pixels of its picture, or the place of its file."""
    picture = _image_in(item)
    if isinstance(picture, (str, Path)):
        return str(user_path(picture).resolve()).encode(errors="surrogateescape")
    if isinstance(picture, Image.Image):
        return f"{picture.mode}{picture.size}".encode() + picture.tobytes()
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()
