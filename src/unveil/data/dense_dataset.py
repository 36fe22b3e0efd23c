"""Samples with a label per pixel: a source whose maps include the label, how classes are stored, what is depth."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .decode import to_channels
from .modality_config import Declared
from .read_map import Map
from .sources import SampleSource, spread
from .transforms import Sample, as_sample


@dataclass(frozen=True)
class LabelEncoding:
    """How classes are stored: `first` is the id of the first one; `void`, and what is below `first`, is no class.

    `names` is empty where only the labels themselves tell how many classes there are.
    """

    names: tuple[str, ...] = ()
    first: int = 0
    void: int | None = 255

    def __post_init__(self) -> None:
        last = self.first + len(self.names) - 1
        if self.void is not None and self.first <= self.void <= last:
            hint = "; where classes count from 1, give --first-class 1" if self.void == 0 else ""
            raise ValueError(
                f"the ignore index {self.void} is a class, {self.names[self.void - self.first]!r}: the"
                f" {len(self.names)} classes are stored as {self.first} to {last}; give another --ignore{hint}"
            )

    def classes(self, stored: Map, name: str) -> Map:
        """The ids that a file holds as classes from 0. Raises ValueError for one beyond the last class."""
        ids = stored.values.int() - self.first
        classes = replace(stored, values=ids).only(ids >= 0)
        highest = int(classes.values.max()) if classes.values.numel() else 0
        if self.names and highest >= len(self.names):
            void = "" if self.void is None else f" and void {self.void}"
            raise ValueError(
                f"{name} holds the id {highest + self.first}, but there are {len(self.names)} classes, stored as"
                f" {self.first} to {self.first + len(self.names) - 1}{void}: correct --classes, --ignore or"
                " --first-class"
            )
        return classes


@dataclass(frozen=True)
class DenseSet:
    """Samples with a label per pixel: some rows of a source, and which of its maps are read.

    `maps` are declared maps by kind: "semseg" is the one of classes, whatever its own name. Class ids and depth are
    checked more strictly than in pretraining: an id beyond the last class, or labels of another size than the image,
    are an error of the set, not an unreadable sample.
    """

    source: SampleSource
    rows: Sequence[int] = field(repr=False)
    maps: Mapping[str, Declared]
    labels: LabelEncoding = field(default_factory=LabelEncoding)
    max_depth: float | None = None  # in metres; what is further away counts as unknown

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def address(self) -> str:
        return self.source.address

    @property
    def declared(self) -> tuple[Declared, ...]:
        return tuple(self.maps.values())

    @property
    def names(self) -> list[str]:
        return [self.source.name(row) for row in self.rows]

    @property
    def identity(self) -> list[object]:
        """What this set is: where it is, a checksum of the samples' names, how maps are read."""
        maps = {kind: repr(declared) for kind, declared in self.maps.items()}
        return [self.address, zlib.crc32(str(self.names).encode()), maps, repr(self.labels), self.max_depth]

    def name(self, index: int) -> str:
        return self.source.name(self.rows[index])

    def has(self, index: int) -> tuple[bool, ...]:
        """All of them, for rows without one were left out."""
        return (True,) * len(self.maps)

    def complete(self) -> frozenset[str]:
        """None of the maps, for views are padded."""
        return frozenset()

    def only(self, rows: Sequence[int]) -> DenseSet:
        """The samples with these numbers, in this order."""
        return replace(self, rows=[self.rows[i] for i in rows])

    def limited(self, limit: int | None) -> DenseSet:
        """At most so many of them, evenly spread."""
        return self if limit is None or limit >= len(self) else self.only(spread(len(self), limit))

    def select(self, kinds: Sequence[str]) -> DenseSet:
        """The same samples with these maps only, the first of which sets the frame.

        Raises ValueError unless there are all of them.
        """
        for kind in kinds:
            if kind not in self.maps:
                raise ValueError(
                    f"{self.address} has no {kind}, there is {', '.join(self.maps)}: put it into a folder beside the"
                    f" others, such as {kind}/, with files of the same names"
                )
        return replace(self, maps={kind: self.maps[kind] for kind in kinds})

    def read(self, index: int, kind: str) -> Map:
        """One map as it is stored, classes from 0; raises `Unreadable`, and ValueError for an id that is no class."""
        declared = self.maps[kind]
        declared = replace(declared, measured=declared.is_categorical or declared.measured)  # ids are checked below
        stored = self.source.settled((declared,)).read(self.rows[index])[declared.name]
        name = f"{kind} of {self.name(index)}"
        if stored.is_picture:
            stored = replace(stored, values=to_channels(stored.values, declared.modality.channels, name))
        if kind == "semseg":
            return self.labels.classes(stored, name)
        if kind == "depth":
            most = math.inf if self.max_depth is None else self.max_depth
            return stored.only((stored.values > 0) & (stored.values <= most))
        return stored

    def sample(self, index: int) -> Sample:
        """The maps of a sample in the frame of the first.

        Raises `Unreadable` for a broken file, and ValueError for labels of another size than the image.
        """
        maps = {kind: self.read(index, kind) for kind in self.maps}
        first = next(iter(maps))
        frame = maps[first].values.shape[-2:]
        if "semseg" in maps and (size := maps["semseg"].values.shape[-2:]) != frame:
            raise ValueError(
                f"semseg of {self.name(index)} has {size[1]} x {size[0]} pixels, but its {first}"
                f" {frame[1]} x {frame[0]}: labels need the size of the image; make them anew, without resizing"
            )
        modalities = [replace(declared.modality, name=kind) for kind, declared in self.maps.items()]
        return as_sample(maps, modalities, self.name(index))

    def with_channels(self, channels: int) -> DenseSet:
        """The same with images of so many channels: an encoder of grey images reads grey ones."""
        rgb = self.maps.get("rgb")
        if rgb is None or rgb.modality.channels == channels:
            return self
        modality = replace(rgb.modality, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        return replace(self, maps={**self.maps, "rgb": replace(rgb, modality=modality)})


@dataclass(frozen=True)
class DensePair:
    """Training and test samples; `is_held_out` says that the test samples are the end of the training set.

    `every` are all sets at their addresses, those that are neither trained on nor tested on too.
    """

    train: DenseSet
    test: DenseSet
    is_held_out: bool
    every: tuple[DenseSet, ...] = ()
