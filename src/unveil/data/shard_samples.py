"""Samples of several modalities in shards: each map a member, `KEY.rgb.jpg` beside `KEY.depth.png`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from .decode import decode, to_channels
from .modality_config import BUILT_IN, RGB, Declared, declared_from
from .picture_arrays import NPY
from .read_map import READ, Map, masked, read_map
from .shard_table import Members
from .shards import PICTURES, InShards, ShardSource, read_shards
from .source_bases import DeclaredSamples

PIXELS = "pixels.npy"  # the end of a member that is a picture stored as an array
WHOLE_NUMBERS = tuple(kind for kind in PICTURES if kind not in ("tif", "tiff"))  # formats that hold no NaN
_READ = tuple(kind.removeprefix(".") for kind in READ)
_READING = ("scale", "offset", "nodata", "void", "window")  # what a declaration says of stored numbers
VOID = -1  # of class ids that are stored as an array


def declared_in(address: str) -> tuple[Declared, ...]:
    """The modalities of shards as the pack declares them; of shards of others the built-in ones that have members.

    None unless there are several, or the pack was made with them.
    """
    shards = read_shards(address, as_recorded=True)
    if (stored := shards.facts.get("modalities")) is not None:
        return tuple(declared_from(each) for each in stored)
    first = {suffix.partition(".")[0] for suffix in shards.table.suffixes if "." in suffix}
    known = tuple(d for d in BUILT_IN.values() if d.name in first)
    return known if len(known) > 1 else ()


def open_shard_samples(address: str, declared: tuple[Declared, ...]) -> ShardSamples:
    """The samples of shards with the declared modalities, those that have any of them.

    A modality is the member whose suffix begins with its name (or `files`), or is its `suffix`; rgb is also a picture
    whose suffix is an extension alone. Raises ValueError for a modality without members, or of another kind than in
    the pack.
    """
    shards = read_shards(address)
    packed = {d.name: d for d in map(declared_from, shards.facts.get("modalities") or ())}
    declared = tuple(_as_packed(d, packed[d.name], address) if d.name in packed else d for d in declared)
    maps, masks = {}, {}
    for d in declared:
        suffixes = _suffixes_of(d, shards.table.suffixes)
        if not suffixes:
            there = ", ".join(shards.table.suffixes)
            raise ValueError(
                f"no member of the samples of {address!r} is {d.name!r}; there are {there}: name members"
                f" KEY.{d.name}.png, or declare a suffix"
            )
        maps[d.name] = shards.table.place(suffixes)
        if d.validity and d.name not in packed:
            masks[d.name] = shards.table.place(_named(d.validity, shards.table.suffixes))
    has = np.any([member.start >= 0 for member in maps.values()], axis=0)
    first = declared[0].name
    for d in declared[1:]:
        if not ((maps[first].start >= 0) & (maps[d.name].start >= 0)).any():
            raise ValueError(f"no sample of {address!r} has both {first} and {d.name}")
    rows = has.nonzero()[0]

    def chosen(member: Members) -> Members:
        return replace(member, kind=member.kind[rows], start=member.start[rows], size=member.size[rows])

    return ShardSamples(
        shards.only(has, "sample without a map"),
        declared,
        {name: chosen(member) for name, member in maps.items()},
        {name: chosen(member) for name, member in masks.items()},
        frozenset(packed),
    )


def _as_packed(declared: Declared, packed: Declared, address: str) -> Declared:
    """A declaration with the stored numbers as the pack holds them; ValueError where it means something else."""
    kind, channels = declared.modality.kind, declared.modality.channels
    if (kind, channels) != (packed.modality.kind, packed.modality.channels):
        raise ValueError(
            f"{declared.name} of the pack {address!r} is {packed.modality.kind}, channels = {packed.modality.channels};"
            f" {kind} and {channels} are declared: declare it as the pack does, or pack the data again"
        )
    of = {name: (getattr(declared, name), getattr(packed, name)) for name in _READING}
    built_in = BUILT_IN.get(declared.name)
    if built_in is None or any(own != getattr(built_in, name) for name, (own, _) in of.items()):
        for name, (own, stored) in of.items():
            if own != stored:
                raise ValueError(
                    f"{declared.name} was packed with {name} = {stored!r}, and {name} = {own!r} is declared: leave it"
                    f" as in the pack {address!r}, or pack the data again"
                )
    return replace(declared, validity="", **{name: stored for name, (_, stored) in of.items()})


def _suffixes_of(declared: Declared, suffixes: list[str]) -> list[str]:
    for name in (declared.name, declared.folder):
        if named := _named(name, suffixes):
            return named
    if declared.suffix:
        return [s for s in suffixes if s == declared.suffix.lower().lstrip(".")]
    return [s for s in suffixes if s in PICTURES] if declared.name == RGB.name else []


def _named(name: str, suffixes: list[str]) -> list[str]:
    """The members of this name in a format that can be read: `depth.png` and `depth.npy` of depth."""
    return [s for s in suffixes if s.startswith(f"{name.lower()}.") and s.rpartition(".")[2] in _READ]


@dataclass(frozen=True)
class ShardSamples(InShards, DeclaredSamples):
    """Samples whose maps are members of shards; a sample is called by its key.

    Of the modalities in `packed`, `unveil pack` has written the members: masks are applied, and arrays hold floats in
    the unit, NaN where they are not valid, or class ids, -1 where there is none.
    """

    declared: tuple[Declared, ...]
    maps: Mapping[str, Members] = field(repr=False)
    masks: Mapping[str, Members] = field(repr=False)
    packed: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each sample, as images of the same shards have it."""
        return self._images.labels

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, as images of the same shards have them."""
        return self._images.classes

    @cached_property
    def _images(self) -> ShardSource:
        return ShardSource(self.shards, self.channels, self.maps[self.declared[0].name])

    def has(self, index: int) -> tuple[bool, ...]:
        return tuple(self.maps[d.name].has(index) for d in self.declared)

    def complete(self) -> frozenset[str]:
        """Pictures, and whole numbers none of which is declared to mean no data; arrays may hold NaN."""
        return frozenset(
            d.name
            for d in self.declared
            if not (d.name in self.masks or d.nodata or d.void is not None)
            and all(s.endswith((*WHOLE_NUMBERS, PIXELS)) for s in self.maps[d.name].suffixes)
        )

    def content(self, index: int) -> bytes:
        """The bytes of the sample's first map."""
        return self.shards.read(index, self.maps[self._present(index)[0].name])

    def _map(self, index: int, declared: Declared) -> Map:
        member = self.maps[declared.name]
        suffix = member.suffix(index)
        data, name = self.shards.read(index, member), f"{self.name(index)}.{suffix}"
        if suffix.endswith(PIXELS):
            pixels = to_channels(decode(data, name), declared.modality.channels, name)
            return Map(pixels, None, f"{pixels.dtype} npy".removeprefix("torch."), is_picture=True)
        if declared.name in self.packed and data[: len(NPY)] == NPY and b"'<u2'" not in data[:64]:
            own: dict[str, Any] = {"void": VOID} if declared.is_categorical else {"nodata": ()}
            return read_map(data, replace(declared, **own), name)  # floats are NaN where there is no data
        stored = read_map(data, declared, name)
        mask = self.masks.get(declared.name)
        if mask is None or not mask.has(index):
            return stored
        return masked(stored, declared, io.BytesIO(self.shards.read(index, mask)), name)
