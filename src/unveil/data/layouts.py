"""Images with a truth at every pixel, classes or depth: plain folders, ADE20K, NYUv2, Hypersim, CamVid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from ..records import Modality
from .class_names import CAMVID, NYU40, named, numbered
from .declaration import DEPTH, RGB, SEMSEG, Declared
from .hdf5 import NYUV2, as_npy, nyuv2_frames
from .listing import list_files, missing
from .reading import READ, Map, read_map
from .samples import Sample, in_one_frame
from .sources import read_bytes, spread

Layout = Literal["auto", "folders", "ade20k", "nyuv2", "hypersim", "camvid"]
FOLDERS = {  # the names that a folder of each kind of map goes by
    "rgb": ("rgb", "images", "image", "img", "imgs"),
    "depth": ("depth", "depths", "depth_raw"),
    "semseg": ("semseg", "labels_40", "labels", "label", "annotations", "masks", "mask"),
}
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
EXTENSIONS = (*READ, ".hdf5")
_NEEDED = "Images with a truth at every pixel are folders of images and of labels or depth, by the same names"
_HELD_OUT = 5  # one in so many, where there is no test set


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


@dataclass(frozen=True)
class Files:
    """The files of one kind of map, one for each sample."""

    declared: Declared
    root: Path
    paths: Sequence[str] = field(repr=False)

    def read(self, index: int) -> Map:
        """The map of a sample; raises `Unreadable`."""
        path = self.paths[index]
        is_hdf5 = path.endswith(".hdf5") or ".mat#" in path
        data = as_npy(self.root, path) if is_hdf5 else read_bytes(self.root / path, path)
        return read_map(data, self.declared, path)


@dataclass(frozen=True)
class DenseSet:
    """Samples with a truth at every pixel: the files of each kind of map, in one order."""

    address: str
    names: Sequence[str] = field(repr=False)
    files: Mapping[str, Files] = field(repr=False)
    labels: Labels = field(default_factory=Labels)
    max_depth: float | None = None  # in metres; what is further away counts as unknown

    def __len__(self) -> int:
        return len(self.names)

    def only(self, rows: Sequence[int]) -> DenseSet:
        """Some of the samples."""
        files = {kind: replace(f, paths=[f.paths[i] for i in rows]) for kind, f in self.files.items()}
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
                    f" others, such as {FOLDERS.get(kind, (kind,))[0]}/, with files of the same names"
                )

    def read(self, index: int, kind: str) -> Map:
        """One map as it is stored, classes from 0; raises `Unreadable`, and ValueError for an id that is no class."""
        found = self.files[kind].read(index)
        if kind == "semseg":
            return self.labels.classes(found, self.files[kind].paths[index])
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
                f"{self.files['semseg'].paths[index]} has {size[1]} x {size[0]} pixels, but its {kinds[0]}"
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
        files = self.files["rgb"]
        rgb = replace(RGB, modality=Modality("rgb", channels, (0.0,) * channels, (1.0,) * channels))
        return replace(self, files={**self.files, "rgb": replace(files, declared=rgb)})


@dataclass(frozen=True)
class DensePair:
    """What is learned from and what is judged on; `is_held_out` says that the second is the end of the first."""

    train: DenseSet
    test: DenseSet
    is_held_out: bool


@dataclass(frozen=True)
class Stored:
    """What the user says of how labels and depth are stored; None leaves it to the layout."""

    layout: Layout = "auto"
    classes: int | None = None
    ignore: int | None = None
    first_class: int | None = None
    depth_scale: float | None = None
    max_depth: float | None = None

    def __post_init__(self) -> None:
        for name in ("depth_scale", "max_depth"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is a number above 0; got {value}")


def open_dense(data: str, test_data: str | None = None, stored: Stored | None = None) -> DensePair:
    """The sets at an address, and at another one for the test.

    Where there is no test set, the last fifth is held out: neighbouring frames of a video look alike. Raises
    FileNotFoundError where nothing is there, ValueError where maps do not belong together.
    """
    stored = stored or Stored()
    found = _open(data, stored)
    if test_data is not None:
        other = _open(test_data, stored)
        return DensePair(found["train"], other.get("test", other["train"]), False)
    if "test" in found:
        return DensePair(found["train"], found["test"], False)
    whole = found["train"]
    first = len(whole) - max(1, len(whole) // _HELD_OUT)
    if first < 1:
        raise ValueError(f"{data} has a single image; at least 2 are needed, one to learn from and one to judge on")
    return DensePair(whole.only(range(first)), whole.only(range(first, len(whole))), True)


def _open(address: str, stored: Stored) -> dict[str, DenseSet]:
    root = Path(address).expanduser()
    if not root.exists():
        raise FileNotFoundError(missing(root, _NEEDED))
    if not root.is_dir():
        raise ValueError(f"{address!r} is a file. {_NEEDED}")
    layout = stored.layout if stored.layout != "auto" else _guess(root)
    if layout == "hypersim":
        from .hypersim import frames

        listed = frames(root)
    elif layout == "nyuv2" and (root / NYUV2).is_file():
        listed = nyuv2_frames(root)
    else:
        listed = {split: _listed(root, kinds) for split, kinds in _splits(root).items()}
    labels = _labels(root, layout, stored)
    scale = stored.depth_scale or DEPTH.scale
    declared = {
        "rgb": RGB,
        "depth": replace(DEPTH, scale=scale),
        "semseg": replace(SEMSEG, void=labels.void, modality=replace(SEMSEG.modality, stride=1)),
    }
    return {
        split: DenseSet(
            f"{address} ({split})" if len(listed) > 1 else address,
            names,
            {kind: Files(declared[kind], root, paths) for kind, paths in kinds.items()},
            labels,
            stored.max_depth,
        )
        for split, (names, kinds) in listed.items()
    }


def _guess(root: Path) -> Layout:
    if (root / "objectInfo150.txt").is_file():
        return "ade20k"
    if (root / "trainannot").is_dir():
        return "camvid"
    if (root / NYUV2).is_file() or any((root / split / "labels_40").is_dir() for split in ("train", "test", ".")):
        return "nyuv2"
    return "hypersim" if any(root.glob("ai_*_*/images")) else "folders"


def _labels(root: Path, layout: Layout, stored: Stored) -> Labels:
    """How a layout stores classes, and what the user says of it."""
    known = {
        "ade20k": lambda: Labels(named(root / "objectInfo150.txt") or numbered(150, 1), first=1, void=None),
        "nyuv2": lambda: Labels(NYU40, first=1, void=None),
        "hypersim": lambda: Labels(NYU40, first=1, void=-1),
        "camvid": lambda: Labels(CAMVID, void=11),
    }
    if layout in known:
        labels = known[layout]()
    else:
        files = [root / name for name in ("classes.txt", "names.txt", "codes.txt")]
        names = next((found for file in files if (found := named(file))), ())
        labels = Labels(names, void=255 if len(names) <= 255 else None)
    if stored.classes is not None and stored.classes != len(labels.names):
        if labels.names:
            raise ValueError(f"{root} has {len(labels.names)} classes by its layout, not {stored.classes}")
        if stored.classes < 2:
            raise ValueError(f"at least 2 classes are needed; got {stored.classes}")
        labels = replace(labels, names=numbered(stored.classes, stored.first_class or 0))
    first = labels.first if stored.first_class is None else stored.first_class
    return Labels(labels.names, first, labels.void if stored.ignore is None else stored.ignore)


def _splits(root: Path) -> dict[str, dict[str, Path]]:
    """The folders of each kind for each split: `train/rgb`, `rgb/train`, `train` and `trainannot`, or without."""
    if (root / "trainannot").is_dir():
        pairs = {s: {"rgb": root / s, "semseg": root / f"{s}annot"} for s in ("train", "test", "val")}
        there = [kinds for kinds in pairs.values() if all(folder.is_dir() for folder in kinds.values())]
        return dict(zip(SPLITS, there, strict=False))
    here = _kinds(root)
    if here:
        inside = {kind: _by_split(folder) for kind, folder in here.items()}
        if all("train" in splits for splits in inside.values()):
            shared = set.intersection(*(set(splits) for splits in inside.values()))
            return {s: {kind: splits[s] for kind, splits in inside.items()} for s in SPLITS if s in shared}
        return {"train": here}
    found = {split: kinds for split, folder in _by_split(root).items() if (kinds := _kinds(folder))}
    if "train" not in found:
        held = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8]) or "no folders"
        raise ValueError(
            f"{str(root)!r} is of no known layout, it holds {held}: put images into rgb/, labels into semseg/, depth"
            " into depth/, or these three into train/ and test/"
        )
    return found


def _kinds(root: Path) -> dict[str, Path]:
    """The folders of each kind inside a folder, the first by the order of names."""
    inside = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    found = {kind: next((inside[n] for n in names if n in inside), None) for kind, names in FOLDERS.items()}
    return {kind: path for kind, path in found.items() if path is not None}


def _by_split(root: Path) -> dict[str, Path]:
    inside = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    found = {split: next((inside[n] for n in names if n in inside), None) for split, names in SPLITS.items()}
    return {split: path for split, path in found.items() if path is not None}


def _listed(root: Path, kinds: Mapping[str, Path]) -> tuple[list[str], dict[str, list[str]]]:
    """The samples that folders share, and the file of each; ValueError where an image has no partner."""
    stems = {kind: _stems(folder) for kind, folder in kinds.items()}
    first = next(iter(kinds))
    names = sorted(stems[first])
    for kind, found in stems.items():
        if without := [name for name in names if name not in found]:
            raise ValueError(
                f"{len(without)} of the {len(names)} files of {kinds[first]} have no {kind} in {kinds[kind]}, e.g."
                f" {without[0]!r}: add the files under the same names, or take those images out"
            )
    below = {kind: folder.relative_to(root) for kind, folder in kinds.items()}
    return names, {kind: [(below[kind] / found[name]).as_posix() for name in names] for kind, found in stems.items()}


def _stems(folder: Path) -> dict[str, str]:
    files, others = list_files(folder, EXTENSIONS)
    if not files:
        held = ", ".join(f"{n} {kind}" for kind, n in others.most_common(5)) or "nothing"
        raise ValueError(f"no maps in {str(folder)!r}: found {held}. What counts: {' '.join(EXTENSIONS)}")
    return {path.rsplit(".", 1)[0]: path for path in files}


def _above_zero(found: Map, most: float | None) -> Map:
    """Depth where it is known: above 0, and at most so many metres."""
    valid = found.values > 0
    if most is not None:
        valid &= found.values <= most
    if found.valid is not None:
        valid &= found.valid
    return Map(torch.where(valid, found.values, 0), valid, found.stored)
