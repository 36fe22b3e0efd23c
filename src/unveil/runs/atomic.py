"""Atomic file writes: a reader sees the previous file or the new one, never a part of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. When the body has written it, it is synced and renamed to `path`.

    Raises what the body raises, and OSError when the disk fails; then `path` is as before and the temporary file gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.unlink(missing_ok=True)  # should a stranger have put a link there
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of a file as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace the content of a text file (UTF-8) as a whole or not at all; bytes of names that are none are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file. Raises TypeError, and leaves the file, when the content is no JSON."""
    write_text(path, json.dumps(content, indent=1))


def make_folder(path: Path, exist_ok: bool = True) -> None:
    """Make a folder and those above it that are missing, and sync their names: what is stored in it is then found.

    Raises FileExistsError where `path` is a file, or is there without `exist_ok`.
    """
    above = [folder.parent for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=exist_ok)
    for folder in reversed(above):
        with suppress(PermissionError):  # of folders that others own
            sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
