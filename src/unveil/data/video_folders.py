"""Videos with masks of objects in the layout of DAVIS: frames as pictures, object ids as PNG, lists of videos."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from ..runs.console import suggest
from ..runs.regular_files import read_text, stays_below
from .decode import EXTENSIONS, Unreadable, decode, read_header, to_channels
from .label_palette import COLOURS, VOID
from .listing import existing_folder, list_files
from .modality_config import SEMSEG
from .read_map import read_map
from .regular_files import read_bytes

PICTURES, MASKS, LISTS = "JPEGImages", "Annotations", "ImageSets"
_NEEDED = f"Videos are in {PICTURES}/480p/VIDEO/ with masks in {MASKS}/480p/VIDEO/, as DAVIS has them"
_SIZES = ("480p", "Full-Resolution", "1080p", "")  # folders between, the first that is there
_YEARS = ("2017", "2016", "480p", "1080p")  # folders of lists, the first that has the list
_MASK_ENDS = (".png",)
_MOST = 254  # objects of 8 bits, beside none and void
_IDS = replace(SEMSEG, void=None)  # whose void stays 255


@dataclass(frozen=True)
class Video:
    """Frames in their order, and the file of the mask of each; None for a frame without one."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def stem(self, number: int) -> str:
        """The name of a frame without its end, which its mask has too."""
        return self.frames[number].stem

    def frame(self, number: int, channels: int = 3) -> Shaped[Tensor, "C H W"]:
        """The pixels of a frame. Raises `Unreadable`."""
        name = f"{self.name}/{self.frames[number].name}"
        return to_channels(decode(read_bytes(self.frames[number], name), name), channels, name)

    def mask(self, number: int) -> UInt8[np.ndarray, "H W"] | None:
        """The ids of a frame's objects, 0 for none and 255 for void; None where there is no file.

        Raises `Unreadable`.
        """
        file = self.masks[number]
        if file is None:
            return None
        name = f"{self.name}/{file.name}"
        return read_ids(read_bytes(file, name), name)


@dataclass(frozen=True)
class VideoSet:
    """Videos at an address, the list that named them, and the folders without frames or masks that were passed over."""

    address: str
    videos: tuple[Video, ...]
    listed_by: str
    passed_over: dict[str, str] = field(default_factory=dict)

    def limited(self, limit: int | None) -> VideoSet:
        """The first so many videos of the set; all where there is no limit."""
        return VideoSet(self.address, self.videos[:limit], self.listed_by, self.passed_over)


def open_videos(address: str, split: str | None = None) -> VideoSet:
    """The videos of a folder in the layout of DAVIS 2016 or 2017, or of YouTube-VOS.

    `split` names a list in `ImageSets/`, such as val, train or test-dev; by default it is val where there is such a
    list, else all folders count. Raises FileNotFoundError where nothing is there, and ValueError where the layout is
    another, where there is no such list, or where one names videos that there are not.
    """
    root = _root(existing_folder(address, _NEEDED))
    size = next(size for size in _SIZES if (root / PICTURES / size).is_dir())
    pictures, masks = root / PICTURES / size, _masks(root, size)
    there = sorted(entry.name for entry in pictures.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names, listed_by = _listed(root, split) or (there, f"all folders of {PICTURES}/{size}".rstrip("/"))
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"{listed_by} of {address} names {len(missing)} videos that {pictures.relative_to(root)} does not have,"
            f" such as {missing[0]!r}; unpack all of it, or choose another list by --split"
        )
    if split is None and not any((masks / name).is_dir() for name in names):
        raise ValueError(f"no video of {address} has a folder of masks in {masks}. {_NEEDED}")
    videos, passed_over = [], {}
    for name in names:
        video = _video(name, pictures / name, masks / name)
        if not video.frames:
            passed_over[name] = "its folder has no pictures"
        elif not any(video.masks):
            passed_over[name] = "it has no masks"
        else:
            videos.append(video)
    if not videos:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(passed_over.items())[:3])
        raise ValueError(f"{address} has no video with frames and masks ({reasons or 'no folders'}). {_NEEDED}")
    return VideoSet(address, tuple(videos), listed_by, passed_over)


def files_digest(address: str) -> str:
    """A digest of the names, sizes and times of all frames, masks and lists of a folder of videos."""
    root, facts = _root(existing_folder(address, _NEEDED)), []
    for kind in (PICTURES, MASKS, LISTS):
        for place, folders, names in os.walk(root / kind):
            folders.sort()
            for name in sorted(names):
                stat = os.lstat(os.path.join(place, name))
                facts.append([place, name, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _root(folder: Path) -> Path:
    """The folder that holds JPEGImages: the one that was named, or one in it (DAVIS/ of the published archives)."""
    places = (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir()))
    for place in places:
        if (place / PICTURES).is_dir() and (place / MASKS).is_dir():
            return place
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise ValueError(f"{str(folder)!r} holds {held}, and no {PICTURES}/ with {MASKS}/. {_NEEDED}")


def _masks(root: Path, size: str) -> Path:
    """The folder of masks for pictures of a size: of the same, or the one that is there."""
    return next(root / MASKS / own for own in (size, *_SIZES) if (root / MASKS / own).is_dir())


def _listed(root: Path, split: str | None) -> tuple[list[str], str] | None:
    """The videos that a list names, each once, and the list; None where none was asked for and there is no val."""
    wanted = split or "val"
    lists = {
        file.relative_to(root).as_posix(): file
        for year in (*_YEARS, "")
        for file in [root / LISTS / year / f"{wanted}.txt"]
        if stays_below(wanted) and file.is_file()
    }
    if not lists:
        if split is None:
            return None
        known = sorted({file.stem for file in (root / LISTS).rglob("*.txt")}) if (root / LISTS).is_dir() else []
        raise ValueError(f"there is no list {split!r} in {root / LISTS}: {suggest(split, known, 'it has no lists')}")
    place, file = next(iter(lists.items()))
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {file} cannot be read: {error}") from error
    names: dict[str, None] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name = line.split()[0]
        name = name.strip("/").split("/")[-2] if "/" in name.strip("/") else name  # of 2016: a frame a line
        if not stays_below(name) or not name.strip("."):
            raise ValueError(f"the list {file} has a line that names no video: {line!r}")
        names[name] = None
    if not names:
        raise ValueError(f"the list {file} is empty; choose another by --split")
    return list(names), place


def _video(name: str, pictures: Path, masks: Path) -> Video:
    frames = sorted(_files(pictures, EXTENSIONS).items(), key=lambda item: _order(item[0]))
    by_stem = _files(masks, _MASK_ENDS) if masks.is_dir() else {}
    return Video(name, tuple(path for _, path in frames), tuple(by_stem.get(stem) for stem, _ in frames))


def _files(folder: Path, ends: Sequence[str]) -> dict[str, Path]:
    """The files of a folder itself, by their names without ends."""
    names = (str(path) for path in list_files(folder, ends)[0])
    return {os.path.splitext(name)[0]: folder / name for name in names if "/" not in name}


def _order(stem: str) -> tuple[int, str]:
    """Frames by number where their names are numbers, so that 10 comes after 9."""
    return (int(stem) if stem.isdecimal() else 0, stem)


def read_ids(data: bytes, name: str = "mask") -> UInt8[np.ndarray, "H W"]:
    """The object ids of a mask: the numbers of a PNG with a palette or of a grey one, or colours of that palette.

    Raises `Unreadable`, also for colours that are no object's, and for ids above 255.
    """
    header = read_header(data, name)
    if header.channels == 3 and header.mode != "P":
        return _ids_of_colours(decode(data, name), name)
    stored = read_map(data, _IDS, name).values[0]
    if int(stored.max()) > VOID:
        raise Unreadable(name, f"holds the object id {int(stored.max())}; ids are 0 to {_MOST}, and {VOID} is void")
    return stored.to(torch.uint8).numpy()


def _ids_of_colours(pixels: Shaped[Tensor, "3 H W"], name: str) -> UInt8[np.ndarray, "H W"]:
    values = pixels.numpy()
    if values.dtype == np.uint8 and (values == values[:1]).all():  # a grey mask that was saved as RGB
        grey: UInt8[np.ndarray, "H W"] = values[0]
        return grey
    packed = values.astype(np.int64).transpose(1, 2, 0) @ (65536, 256, 1)
    palette = COLOURS.astype(np.int64) @ (65536, 256, 1)
    order = np.argsort(palette)
    places = order[np.searchsorted(palette[order], packed).clip(0, len(order) - 1)]
    if values.dtype != np.uint8 or (palette[places] != packed).any():
        raise Unreadable(name, "its colours are none of the palette of DAVIS; save the number of each pixel's object")
    ids: UInt8[np.ndarray, "H W"] = places.astype(np.uint8)
    return ids
