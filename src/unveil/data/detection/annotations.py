"""The objects of images, checked: boxes, classes, masks, crowds; and sets of images that have them."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from ...runs.console import quoted
from ..aligned_folders import AlignedSource, Paths
from ..decode import Unreadable, decode, to_channels
from ..modality_config import RGB, Declared
from ..regular_files import read_bytes
from ..sources import spread
from ..transforms import Sample
from .masks import InstanceMask, Window

LEAST = 1e-3  # pixels of a side, below which a box is none
MOST_SIDE = 1 << 20  # pixels of a side of an image


@dataclass(frozen=True)
class Objects:
    """The objects of one image: boxes (x0, y0, x1, y1) in pixels inside it, classes from 0, areas in pixels, masks.

    A crowd is a region of several objects that are not told apart: nothing is learned from it, and what is predicted
    in it counts as neither right nor wrong. A mask is None where an object has a box alone.
    """

    boxes: Float64[ndarray, "N 4"]
    labels: Int64[ndarray, " N"]
    crowd: Bool[ndarray, " N"]
    areas: Float64[ndarray, " N"]
    masks: tuple[InstanceMask | None, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def only(self, rows: Sequence[int]) -> Objects:
        """Some of the objects, in this order."""
        index = np.array(rows, np.int64)
        masks = tuple(self.masks[row] for row in rows)
        return Objects(self.boxes[index], self.labels[index], self.crowd[index], self.areas[index], masks)


@dataclass
class Counts:
    """How many annotations were changed or left out, by what was the matter with them."""

    of: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, int]:
        """The numbers by what was the matter, in alphabetical order."""
        return dict(sorted(self.of.items()))


@dataclass(frozen=True)
class Annotation:
    """One object as a file gives it; an area of NaN is that of the mask, or of the box."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool = False
    area: float = math.nan
    mask: InstanceMask | None = None


def objects_of(given: Sequence[Annotation], height: int, width: int, counts: Counts) -> Objects:
    """The objects of an image of this size: boxes are cut to it, and those without an area are left out, counted."""
    kept: list[tuple[tuple[float, float, float, float], float, Annotation]] = []
    for one in given:
        x0, y0, x1, y1 = one.box
        if x1 - x0 < LEAST or y1 - y0 < LEAST:
            counts.of["boxes without an area"] += 1
            continue
        cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if cut[2] - cut[0] < LEAST or cut[3] - cut[1] < LEAST:
            counts.of["boxes outside their image"] += 1
            continue
        if max(abs(a - b) for a, b in zip(cut, one.box, strict=True)) > 1:  # a pixel more is how files round
            counts.of["boxes cut to their image"] += 1
        area = one.area
        if math.isnan(area):
            own = None if one.mask is None else int(one.mask.bitmap(Window(height, width)).sum())
            area = float(own or (cut[2] - cut[0]) * (cut[3] - cut[1]))
        kept.append((cut, area, one))
    return Objects(
        np.array([box for box, _, _ in kept], np.float64).reshape(-1, 4),
        np.array([one.label for *_, one in kept], np.int64),
        np.array([one.crowd for *_, one in kept], bool),
        np.array([area for _, area, _ in kept], np.float64),
        tuple(one.mask for *_, one in kept),
    )


@dataclass(frozen=True)
class DetectionSet:
    """Images with their objects: `files` and `sizes` (height, width) as the annotations tell, classes by name.

    It is a source of samples whose only map is the picture. An image of another size than its annotations tell is
    unreadable: its boxes would lie elsewhere. `counts` says what became of annotations that were not right, `missing`
    which images are not there.
    """

    address: str
    root: Path
    files: Sequence[str] = field(repr=False)
    sizes: Sequence[tuple[int, int]] = field(repr=False)
    objects: Sequence[Objects] = field(repr=False)
    classes: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    declared: tuple[Declared, ...] = (RGB,)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def has_masks(self) -> bool:
        """Whether every object that is no crowd has a mask, and there is one."""
        told = [
            m is not None for one in self.objects for m, crowd in zip(one.masks, one.crowd, strict=True) if not crowd
        ]
        return bool(told) and all(told)

    @property
    def identity(self) -> list[object]:
        """What this set is: where it is, a checksum of its images' names and of their objects."""
        total = zlib.crc32(str(list(self.files)).encode())
        for one in self.objects:
            total = zlib.crc32(one.boxes.tobytes() + one.labels.tobytes() + one.crowd.tobytes(), total)
            total = zlib.crc32(repr([None if m is None else m.as_coco() for m in one.masks]).encode(), total)
        return [self.address, total, list(self.classes)]

    def name(self, index: int) -> str:
        return self.files[index]

    def has(self, index: int) -> tuple[bool, ...]:
        """Whether a sample has its only map, the picture: always."""
        return (True,)

    def complete(self) -> frozenset[str]:
        """None of the maps, for views are padded."""
        return frozenset()

    def sample(self, index: int) -> Sample:
        """The picture of a sample alone; raises `Unreadable`."""
        name = self.files[index]
        channels = self.declared[0].modality.channels
        pixels = to_channels(decode(read_bytes(self.root / name, name), name), channels, name)
        height, width = self.sizes[index]
        if tuple(pixels.shape[-2:]) != (height, width):
            size = f"{pixels.shape[-1]} x {pixels.shape[-2]}"
            raise Unreadable(name, f"its annotations are of {width} x {height} pixels, the image has {size}")
        return Sample({self.declared[0].name: pixels})

    def as_source(self) -> AlignedSource:
        """The same images without their objects, as other commands read them."""
        return AlignedSource(self.address, self.root, (RGB,), self.files, {RGB.name: Paths(self.files)})

    def with_channels(self, channels: int) -> DetectionSet:
        """The same with images of so many channels: an encoder of grey images reads grey ones."""
        own = self.declared[0]
        if own.modality.channels == channels:
            return self
        modality = replace(own.modality, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        return replace(self, declared=(replace(own, modality=modality),))

    def only(self, rows: Sequence[int]) -> DetectionSet:
        """The images with these numbers, in this order."""
        files, sizes = [self.files[row] for row in rows], [self.sizes[row] for row in rows]
        return replace(self, files=files, sizes=sizes, objects=[self.objects[row] for row in rows])

    def limited(self, limit: int | None) -> DetectionSet:
        """At most so many of them, evenly spread."""
        return self if limit is None or limit >= len(self) else self.only(spread(len(self), limit))


@dataclass(frozen=True)
class DetectionPair:
    """Training and test images of the same classes; `is_held_out` says that the test images are the end of one set."""

    train: DetectionSet
    test: DetectionSet
    is_held_out: bool

    @property
    def has_masks(self) -> bool:
        return self.train.has_masks and self.test.has_masks

    def limited(self, limit: int | None) -> DetectionPair:
        """At most so many images of each set."""
        return replace(self, train=self.train.limited(limit), test=self.test.limited(limit))


def whole_number(value: object, what: str, least: int = 0, most: int = 1 << 62) -> int:
    """A number of a file as an int. Raises ValueError with `what` for what is none, or out of range."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value != int(value)
    ):
        raise ValueError(f"{what} is a whole number; got {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{what} is a number from {least:,} to {most:,}; got {value}")
    return int(value)


def finite(values: object, count: int, what: str) -> list[float]:
    """So many numbers of a file. Raises ValueError with `what` where they are not there, or not finite."""
    if isinstance(values, list) and len(values) == count:
        is_number = [isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in values]
        if all(is_number):
            return [float(value) for value in values]
    raise ValueError(f"{what} is {count} finite numbers; got {shown(values)}")


def shown(value: object) -> str:
    """A value of a file for a message, cut to 60 letters; of a text that it is one."""
    return f"the text {quoted(value[:60])}" if isinstance(value, str) else quoted(str(value)[:60])
