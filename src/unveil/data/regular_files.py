"""Files that strangers name: only regular ones are opened, and only in the folders that data may lie in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ..runs.console import user_path
from .decode import Unreadable

FOLDERS = "UNVEIL_IMAGE_FOLDERS"  # of the environment: more folders in which rows of tables may name files
_KINDS = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)  # should a pipe take the place of a file that has been looked at


def special_kind(path: str | os.PathLike[str]) -> str | None:
    """What a path is where it is no regular file, links followed: named pipe, device; None for what is not there."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "special file")


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError where a path is no regular file, for to open a pipe may wait for ever, a device never ends."""
    if kind := special_kind(path):
        raise OSError(f"is a {kind}, and only regular files are read")


def open_regular(path: str | os.PathLike[str]) -> int:
    """The descriptor of a regular file that is opened to be read; OSError for anything else."""
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC | _WITHOUT_WAITING)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("is no regular file any more, and only these are read")
    return descriptor


def read_bytes(path: Path, name: str) -> bytes:
    """The bytes of a regular file; raises `Unreadable` where it cannot be read, or is none."""
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise Unreadable(name, error.strerror or str(error)) from error


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
