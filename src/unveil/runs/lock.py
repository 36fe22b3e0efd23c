"""Locks between processes, of one machine or of several that share a folder.

The operating system frees the lock of a process that ends, however it ends. On network drives that needs a file system
with locks, such as NFS 4 or Lustre mounted with `flock`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .console import log

_PATIENCE = 0.2  # seconds: `holder` has a free lock for a moment while it tests it


@contextmanager
def hold(path: Path) -> Iterator[str | None]:
    """Hold a lock file if it is free: None, else the process that holds it, such as `process 12 on host`.

    The file stays: were it removed, one process could lock the old file and another the new one. Where the file
    system has no locks, a message says so and the lock counts as held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 10)
    except Timeout:
        yield _name(path)
        return
    except OSError as error:
        log(f"note: {path} cannot be locked ({error}); make sure that no other process works in {path.parent}")
    try:
        # beside the lock, since Windows refuses to read a locked file
        _owner(path).write_text(f"process {os.getpid()} on {platform.node() or 'this machine'}")
        yield None
    finally:
        lock.release()


def holder(path: Path) -> str | None:
    """The process that holds a lock file; None where it is free."""
    if not path.exists():
        return None
    try:
        with FileLock(path).acquire(blocking=False):
            return None
    except Timeout:
        return _name(path)
    except OSError:  # a file system without locks
        return None


def _owner(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _name(path: Path) -> str:
    with suppress(OSError):
        if name := _owner(path).read_text():
            return name
    return "a process that has just begun"
