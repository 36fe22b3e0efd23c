"""The image files that annotations name: where they lie, which are there, and their sizes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ...runs.console import quoted
from ..decode import EXTENSIONS, read_header
from ..listing import list_files
from ..regular_files import path_in, read_bytes

LEAST_THERE = 0.5  # of the images that annotations name; with fewer the folder is likely another one
_LOOKED_AT = 20  # names by which the folder of images is chosen


def present(folders: Sequence[Path], names: Sequence[str]) -> tuple[Path, Collection[str]]:
    """The folder that has most of some of these files, paths below it, and which of all of them it has.

    Raises ValueError for a name that leads out of the folder.
    """
    listed: dict[Path, frozenset[str]] = {}

    def is_there(folder: Path, name: str) -> bool:
        try:
            path = path_in([folder], name)
        except ValueError as error:
            raise ValueError(f"the file name {quoted(name[:80])}: {error}") from error
        if path.parent not in listed:
            try:
                listed[path.parent] = frozenset(os.listdir(path.parent))
            except OSError:
                listed[path.parent] = frozenset()
        return path.name in listed[path.parent]

    some = names[:: max(1, len(names) // _LOOKED_AT)]
    counts = [sum(is_there(folder, name) for name in some) for folder in folders]
    folder = folders[counts.index(max(counts))]
    return folder, {name for name in names if is_there(folder, name)}


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header. Raises `Unreadable`."""
    return read_header(read_bytes(path, path.name), path.name).size


def pictures_in(folder: Path) -> list[str]:
    """The pictures in a folder and those below it, as sorted paths from it."""
    return list(list_files(folder, EXTENSIONS)[0])
