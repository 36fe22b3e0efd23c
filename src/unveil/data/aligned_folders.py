"""Sources of several maps: aligned folders `root/<modality>/**/<stem>.*`, and what else `open_samples` opens."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Int32

from ..runs.console import suggest, user_path
from .columns import GIVEN, split_columns
from .decode import EXTENSIONS
from .file_ends import Ends
from .file_names import Names
from .listing import are_shards, existing_folder, folder_labels, is_table, kind_of, list_files, none_found
from .modality_config import BUILT_IN, Declared
from .read_map import READ, Map, as_npy, masked, read_map
from .regular_files import read_bytes
from .source_bases import DeclaredSamples
from .sources import SampleSource, Source, open_source, opener_of
from .tiling import split_tiling

_NEEDED = "Several modalities are read from a folder that holds one for each, a table, or scenes"
INTEGERS = tuple(kind for kind in EXTENSIONS if kind not in (".tif", ".tiff"))  # whole numbers: no NaN is among them
Listed = dict[
    str, tuple[Names, Counter[str], Bool[np.ndarray, " N"]]
]  # by folder: files, others by kind, which are read


def open_samples(address: str | Path, declared: tuple[Declared, ...]) -> SampleSource:
    """The samples at an address: a folder with one of files for each modality, a table, shards, or `scenes:...`.

    The samples are all stems that any modality has. Raises FileNotFoundError for a folder that is not there,
    ValueError for modalities that share no stem with the first, and for what scenes do not hold.
    """
    text = str(address)
    if not declared:
        raise ValueError("no modality is declared; name at least one, such as rgb")
    if split_tiling(text)[1] is not None:
        from .tiled_source import open_tiles

        return open_tiles(text, declared)
    if opener := opener_of(text):
        return cast("SampleSource", opener(text, declared))
    if is_table(text):
        from .table_samples import open_table_samples  # pyarrow is imported where there is a table

        return open_table_samples(text, declared)
    if _are_shards(text):
        from .shard_samples import open_shard_samples

        return open_shard_samples(text, declared)
    root = existing_folder(text, _NEEDED)
    listed: Listed = {}
    files = {d.name: _files_of(root, d.folder, d.suffix, f"modality {d.name!r}", listed) for d in declared}
    masks = {
        d.name: _files_of(root, d.validity, "", f"the validity of {d.name!r}", listed) for d in declared if d.validity
    }
    stems = _union([own for own, _ in files.values()])
    paths = {name: _aligned(stems, own, below) for name, (own, below) in files.items()}
    of_masks = {name: _aligned(stems, own, below) for name, (own, below) in masks.items()}
    first = declared[0].name
    for d in declared[1:]:
        if not (paths[d.name].presence & paths[first].presence).any():
            one, other = files[first][0][0], files[d.name][0][0]
            raise ValueError(
                f"{text!r} is not aligned: no file of {d.folder!r} (such as {other}) has the stem of one of"
                f" {declared[0].folder!r} (such as {one}); give both the same names, or declare a suffix"
            )
    labels, classes = folder_labels(stems)
    return AlignedSource(text, root, declared, stems, paths, of_masks, labels, classes, _passed_over(root, listed))


def aligned_modalities(address: str | Path) -> tuple[Declared, ...]:
    """The built-in modalities that a folder has a sub-folder for, those of shards, of data given as a mapping; none
    unless there are two."""
    place = split_tiling(str(address))[0]
    if place.partition(":")[0] == GIVEN:
        from .given import given_modalities

        return given_modalities(place)
    if _are_shards(place):
        from .shard_samples import declared_in

        return declared_in(place)
    root = user_path(place)
    modalities = tuple(d for d in BUILT_IN.values() if root.is_dir() and (root / d.folder).is_dir())
    return modalities if len(modalities) > 1 else ()


def open_images(address: str | Path, channels: int | None = None, declared: Sequence[Declared] = ()) -> Source:
    """What an encoder of images reads at an address: of aligned folders the first of its `declared` inputs, or rgb.

    Any other address is opened as `open_source` does, and what that raises is raised.
    """
    if _are_shards(str(address)):
        return _images_of_shards(str(address), channels, declared)
    root = user_path(split_tiling(str(address))[0])
    first = next((d for d in declared if d.modality.role != "output"), None)
    if first is not None and split_tiling(str(address))[1] is not None:
        return open_samples(address, (first,))
    if first is not None and is_table(str(address)):
        from .table_samples import open_table_samples  # pyarrow is imported where there is a table

        return open_table_samples(str(address), (first,), declared)
    if root.is_dir() and (aligned_modalities(address) or (first is not None and (root / first.folder).is_dir())):
        return open_samples(address, (first or BUILT_IN["rgb"],))
    return open_source(address, channels)


def _are_shards(address: str) -> bool:
    """Whether an address is one of shards, or a folder that holds nothing else to read."""
    if opener_of(address):
        return False
    place = split_columns(address)[0]
    if are_shards(place):
        return True
    root = user_path(place)
    return root.is_dir() and any(root.glob("*.tar")) and not any(entry.is_dir() for entry in root.iterdir())


def _images_of_shards(address: str, channels: int | None, declared: Sequence[Declared]) -> Source:
    """The images of shards; where they have maps of several modalities, the first of the `declared` inputs, or rgb."""
    there = {d.name for d in aligned_modalities(address)}
    first = next((d for d in declared if d.modality.role != "output"), BUILT_IN["rgb"])
    return open_samples(address, (first,)) if first.name in there else open_source(address, channels)


@dataclass(frozen=True, eq=False)
class Paths:
    """The file of each sample: the place of its name among `names`, -1 where it has none; by default all in order."""

    names: Sequence[str] = field(repr=False)
    rows: Int32[np.ndarray, " N"] | None = field(default=None, repr=False)
    folder: str = ""

    def __getitem__(self, index: int) -> str | None:
        """The path of a sample's file below the root; None where it has none."""
        row = index if self.rows is None else int(self.rows[index])
        return None if row < 0 else f"{self.folder}{self.names[row]}"

    @property
    def presence(self) -> Bool[np.ndarray, " N"]:
        return np.ones(len(self.names), np.bool_) if self.rows is None else self.rows >= 0

    def all_end_with(self, suffixes: Sequence[str]) -> bool:
        names = self.names if isinstance(self.names, Names) else Names.of(self.names)
        return bool(np.logical_or.reduce([names.end_with(suffix) for suffix in suffixes]).all())


@dataclass(frozen=True)
class AlignedSource(DeclaredSamples):
    """Files of several modalities in aligned folders: those of one stem are one sample, called by its stem."""

    address: str
    root: Path
    declared: tuple[Declared, ...]
    stems: Sequence[str] = field(repr=False)
    files: Mapping[str, Paths] = field(repr=False)
    masks: Mapping[str, Paths] = field(default_factory=dict, repr=False)
    labels: Sequence[int] | None = field(default=None, repr=False)
    classes: list[str] | None = field(default=None, repr=False)
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def names(self) -> Sequence[str]:
        return self.stems

    def name(self, index: int) -> str:
        return self.stems[index]

    @cached_property
    def _resolved(self) -> Path:
        return self.root.resolve()

    def location(self, index: int) -> str:
        """The path of the sample's first map."""
        paths = (self.files[d.name][index] for d in self.declared)
        return f"{self._resolved}/{next(filter(None, paths), self.stems[index])}"

    def has(self, index: int) -> tuple[bool, ...]:
        return tuple(self.files[d.name][index] is not None for d in self.declared)

    @property
    def presence(self) -> Bool[np.ndarray, "N M"]:
        """What `has` says of every sample."""
        return np.stack([self.files[d.name].presence for d in self.declared], axis=1)

    def complete(self) -> frozenset[str]:
        """Pictures, and files of integers none of which is declared to mean no data; arrays and TIFFs may hold NaN."""
        return frozenset(
            d.name
            for d in self.declared
            if not (d.validity or d.nodata or d.void is not None) and self.files[d.name].all_end_with(INTEGERS)
        )

    def content(self, index: int) -> bytes:
        """The bytes of the file of the sample's first map, or where it lies in a file of several."""
        path = self.location(index)
        return path.encode(errors="surrogateescape") if "#" in path else read_bytes(Path(path), self.stems[index])

    def ends(self, index: int) -> Ends:
        """The ends of that file, or of where it lies; raises `Unreadable`."""
        path = self.location(index)
        return Ends(self.content(index)) if "#" in path else Ends.of_file(Path(path), self.stems[index])

    def _map(self, index: int, declared: Declared) -> Map:
        path = self.files[declared.name][index]
        assert path is not None
        is_hdf5 = path.endswith(".hdf5") or ".mat#" in path
        data = as_npy(self.root, path) if is_hdf5 else read_bytes(self.root / path, path)
        stored = read_map(data, declared, path)
        mask = self.masks[declared.name][index] if declared.name in self.masks else None
        return stored if mask is None else masked(stored, declared, self.root / mask, mask)


def _files_of(root: Path, folder: str, suffix: str, what: str, listed: Listed) -> tuple[Names, Paths]:
    """The files of a folder in the order of their stems, the paths in it without the suffix, or the extension."""
    place = root / folder
    if not place.is_dir():
        near = [name for name in sorted(os.listdir(root)) if (root / name).is_dir()]
        hint = f"{suggest(folder, near)} (name the folder as the modality, or declare files)"
        raise FileNotFoundError(f"{what} has no folder {str(place)!r}; {hint}")
    if folder not in listed:
        names, others = list_files(place, READ)
        listed[folder] = names, others, np.zeros(len(names), np.bool_)
    names, others, is_read = listed[folder]
    rows = np.array([row for row, name in enumerate(names) if name.endswith(suffix)], np.int32)
    if not len(rows):
        words = none_found(others, [f"*{suffix},", *READ], f"{len(names)} of another suffix")
        raise ValueError(f"{what} has no files in {str(place)!r}: {words}")
    is_read[rows] = True
    if len(rows) < len(names):
        names = names.take(rows)
    stems = Names.of(name.removesuffix(suffix) if suffix else os.path.splitext(name)[0] for name in names)
    if not all(one < other for one, other in pairwise(stems)):
        written = list(stems)
        order = np.array(sorted(range(len(stems)), key=written.__getitem__))
        stems, names = stems.take(order), names.take(order)
        for row, (one, other) in enumerate(pairwise(stems)):
            if one == other:
                both = f"{folder}/{names[row]} and {folder}/{names[row + 1]}"
                raise ValueError(f"{what} has two files of one stem: {both}; remove one of them")
    return stems, Paths(names, folder=f"{folder}/")


def _union(stems: Sequence[Names]) -> Names:
    """All stems that any modality has, sorted; most often each has all of them."""
    if all(each.is_same(stems[0]) for each in stems[1:]):
        return stems[0]
    return Names.of(sorted(set().union(*stems)))


def _aligned(stems: Names, own: Names, paths: Paths) -> Paths:
    """The files of a modality, given in the order of its own stems, for each of all `stems`."""
    if own.is_same(stems):
        return paths
    rows, place = np.full(len(stems), -1, np.int32), 0
    for row, stem in enumerate(own):  # both are sorted
        while place < len(stems) and stems[place] < stem:
            place += 1
        if place < len(stems) and stems[place] == stem:
            rows[place] = row
    return replace(paths, rows=rows)


def _passed_over(root: Path, listed: Listed) -> Counter[str]:
    """What lies in the folder and is not read, by kind: folders of other names, files of other kinds and suffixes."""
    others = sum((counts for _, counts, _ in listed.values()), Counter[str]())
    for names, _, is_read in listed.values():
        others += Counter(map(kind_of, names.take(~is_read)))
    places = {top for folder in listed for top in Path(folder).parts[:1]}
    for entry in sorted(root.iterdir()) if "." not in listed else ():
        if entry.name not in places and not entry.name.startswith("."):
            others[f"folder {entry.name}" if entry.is_dir() else kind_of(entry.name)] += 1
    return others
