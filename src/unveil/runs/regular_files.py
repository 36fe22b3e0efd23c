"""Files and folders of strangers: what is a regular file, and what leads out of the folder that it lies in."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath

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


def read_text(path: Path) -> str:
    """The text of a regular file, UTF-8. Raises OSError, and UnicodeDecodeError."""
    with os.fdopen(open_regular(path), encoding="utf-8") as file:
        return file.read()


def stays_below(path: str) -> bool:
    """Whether a path that a file names is relative and never leaves a folder by `..`, on any platform."""
    kinds = (PurePosixPath(path), PureWindowsPath(path))
    return not any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in kinds) and "\0" not in path


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is, through a link, no longer in a folder."""
    return not os.path.realpath(path).startswith(os.path.realpath(folder).rstrip(os.sep) + os.sep)


def check_links(folder: Path, inside: Collection[str]) -> None:
    """Raise ValueError where one of these, or a folder below, is a link that leads out of the folder and is written."""
    below = (Path(place, entry) for name in inside for place, own, _ in os.walk(folder / name) for entry in own)
    for path in (*(folder / name for name in inside), *below):
        if path.is_symlink() and leads_out(path, folder):
            raise ValueError(
                f"{path} is a link that leads out of {folder}, where results would be written; put what it leads to in"
                " its place, or give --trust (in Python trust=True)"
            )
