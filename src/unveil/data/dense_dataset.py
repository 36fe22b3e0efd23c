"""Samples with a truth at every pixel: the maps of each kind, how classes are stored, what is depth."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from ..modeling.types import Modality
from .decode import to_channels
from .hdf5 import as_npy
from .modality_config import Declared
from .read_map import Map, read_map
from .samples import Sample, SampleSource, in_one_frame
from .sources import read_bytes, spread


@dataclass(frozen=True)
class Labels:
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
        valid = ids >= 0
        if stored.valid is not None:
            valid &= stored.valid
        highest = int(ids[valid].max()) if valid.any() else 0
        if self.names and highest >= len(self.names):
            void = "" if self.void is None else f" and void {self.void}"
            raise ValueError(
                f"{name} holds the id {highest + self.first}, but there are {len(self.names)} classes, stored as"
                f" {self.first} to {self.first + len(self.names) - 1}{void}: correct --classes, --ignore or"
                " --first-class"
            )
        return Map(torch.where(valid, ids, 0), valid, stored.stored)


class Maps(Protocol):
    """The maps of one kind, one for each sample."""

    @property
    def declared(self) -> Declared: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person would call the map of a sample."""
        ...

    def read(self, index: int) -> Map:
        """The map of a sample; raises `Unreadable`."""
        ...

    def only(self, rows: Sequence[int]) -> Maps:
        """Those of some of the samples."""
        ...

    def with_channels(self, channels: int) -> Maps:
        """The same, read as images of so many channels."""
        ...


@dataclass(frozen=True)
class Files:
    """Maps in files of their own."""

    declared: Declared
    root: Path
    paths: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> Map:
        path = self.paths[index]
        is_hdf5 = path.endswith(".hdf5") or ".mat#" in path
        data = as_npy(self.root, path) if is_hdf5 else read_bytes(self.root / path, path)
        return read_map(data, self.declared, path)

    def only(self, rows: Sequence[int]) -> Files:
        return replace(self, paths=[self.paths[i] for i in rows])

    def with_channels(self, channels: int) -> Files:
        """The same files, their channels repeated or weighed."""
        return replace(self, declared=_with_channels(self.declared, channels))


@dataclass(frozen=True)
class Sampled:
    """One of the maps of declared samples, or of rendered scenes: those of some rows."""

    source: SampleSource
    declared: Declared
    rows: Sequence[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The sample's, and which of its maps it is."""
        return f"{self.declared.name} of {self.source.name(self.rows[index])}"

    def read(self, index: int) -> Map:
        """The map as its declaration says, but for class ids, which `Labels` checks."""
        asked = replace(self.declared, measured=self.declared.is_categorical or self.declared.measured)
        found = self.source.settled((asked,)).read(self.rows[index])[asked.name]
        if not found.is_picture:
            return found
        return replace(found, values=to_channels(found.values, asked.modality.channels, self.name(index)))

    def only(self, rows: Sequence[int]) -> Sampled:
        return replace(self, rows=[self.rows[i] for i in rows])

    def with_channels(self, channels: int) -> Sampled:
        """The same maps, their channels repeated or weighed."""
        return replace(self, declared=_with_channels(self.declared, channels))


def _with_channels(declared: Declared, channels: int) -> Declared:
    if declared.modality.channels == channels:
        return declared
    return replace(
        declared, modality=replace(declared.modality, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    )


@dataclass(frozen=True)
class DenseSet:
    """Samples with a truth at every pixel: the maps of each kind, in one order."""

    address: str
    names: Sequence[str] = field(repr=False)
    files: Mapping[str, Maps] = field(repr=False)
    labels: Labels = field(default_factory=Labels)
    max_depth: float | None = None  # in metres; what is further away counts as unknown

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identity(self) -> list[object]:
        """What tells this set from others: where it is, a checksum of the samples' names, how maps are read."""
        read = {kind: repr(maps.declared) for kind, maps in self.files.items()}
        return [self.address, zlib.crc32(str(list(self.names)).encode()), read, repr(self.labels), self.max_depth]

    def only(self, rows: Sequence[int]) -> DenseSet:
        files = {kind: maps.only(rows) for kind, maps in self.files.items()}
        return replace(self, names=[self.names[i] for i in rows], files=files)

    def limited(self, limit: int | None) -> DenseSet:
        """At most so many of them, evenly spread."""
        return self if limit is None or limit >= len(self) else self.only(spread(len(self), limit))

    def check(self, kinds: Sequence[str]) -> None:
        """Raise ValueError unless there are these kinds of maps."""
        for kind in kinds:
            if kind not in self.files:
                raise ValueError(
                    f"{self.address} has no {kind}, there is {', '.join(self.files)}: put it into a folder beside the"
                    f" others, such as {kind}/, with files of the same names"
                )

    def read(self, index: int, kind: str) -> Map:
        """One map as it is stored, classes from 0; raises `Unreadable`, and ValueError for an id that is no class."""
        found = self.files[kind].read(index)
        if kind == "semseg":
            return self.labels.classes(found, self.files[kind].name(index))
        return _above_zero(found, self.max_depth) if kind == "depth" else found

    def sample(self, index: int, modalities: Sequence[Modality]) -> Sample:
        """These maps of a sample in the frame of the first.

        Raises `Unreadable` for a broken file, and ValueError for labels of another size than the image.
        """
        kinds = [m.name for m in modalities]
        read = {kind: self.read(index, kind) for kind in kinds}
        frame = read[kinds[0]].values.shape[-2:]
        if "semseg" in read and (size := read["semseg"].values.shape[-2:]) != frame:
            raise ValueError(
                f"{self.files['semseg'].name(index)} has {size[1]} x {size[0]} pixels, but its {kinds[0]}"
                f" {frame[1]} x {frame[0]}: labels need the size of the image; make them anew, without resizing"
            )
        maps = {kind: m.values for kind, m in read.items()}
        valid = {kind: m.valid for kind, m in read.items() if not m.is_picture}
        return in_one_frame(Sample(maps, valid), modalities, self.names[index])

    def labelled(self, names: tuple[str, ...]) -> DenseSet:
        """The same with classes of these names."""
        return replace(self, labels=replace(self.labels, names=names))

    def with_channels(self, channels: int) -> DenseSet:
        """The same with images of so many channels: an encoder of grey images reads grey ones."""
        if "rgb" not in self.files:
            return self
        return replace(self, files={**self.files, "rgb": self.files["rgb"].with_channels(channels)})


@dataclass(frozen=True)
class DensePair:
    """What is learned from and what is judged on; `is_held_out` says that the second is the end of the first."""

    train: DenseSet
    test: DenseSet
    is_held_out: bool


def _above_zero(found: Map, most: float | None) -> Map:
    """Depth where it is known: above 0, and at most so many metres."""
    valid = found.values > 0
    if most is not None:
        valid &= found.values <= most
    if found.valid is not None:
        valid &= found.valid
    return Map(torch.where(valid, found.values, 0), valid, found.stored)
