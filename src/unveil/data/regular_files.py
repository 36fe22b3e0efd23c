"""Files that strangers name: only regular ones are opened, and only in the folders that data may lie in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..runs.console import user_path
from ..runs.regular_files import open_regular
from .decode import Unreadable
from .limits import max_pixels, other_way

FOLDERS = "UNVEIL_IMAGE_FOLDERS"  # of the environment: more folders in which rows of tables may name files
_BYTES = 12  # of a file, for each pixel that an image may have


def read_bytes(path: Path, name: str) -> bytes:
    """The bytes of a regular file; raises `Unreadable` where it cannot be read, is none, or is too large."""
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            check_bytes(os.fstat(file.fileno()).st_size, name)
            return file.readall()
    except OSError as error:
        raise Unreadable(name, error.strerror or str(error)) from error


def check_bytes(size: int, name: str) -> None:
    """Raise `Unreadable` for a file of more bytes than the largest image has that is read, as a sparse one may be."""
    if size > _BYTES * max_pixels():
        raise Unreadable(name, f"{size:,} bytes are too many to be read at once. {other_way()}")


def path_in(folders: Iterable[Path], named: str) -> Path:
    """The path that a row of a table names, from the first of the folders on; it lies in one of them.

    Links in the folders are followed, as they are in any folder of images: `..` is resolved before, not through them.
    Raises ValueError for a path outside, which the user has to allow by the environment.
    """
    first, *others = folders
    path = os.path.normpath(os.path.join(os.path.abspath(first), named))
    allowed = [
        first,
        *others,
        *(user_path(one) for one in os.environ.get(FOLDERS, "").split(os.pathsep) if one),
    ]
    for folder in allowed:
        for place in (os.path.abspath(folder), os.path.realpath(folder)):
            if path.startswith(place.rstrip(os.sep) + os.sep):
                return Path(path)
    raise ValueError(
        f"it lies outside the data's folder {str(first)!r}; where it is meant, name its folder in {FOLDERS}"
    )
