"""Locks between processes, of one machine or of several that share a folder.

The operating system frees the lock of a process that ends, however it ends. On network drives that needs a file system
with locks, such as NFS 4 or Lustre mounted with `flock`. Beside the lock lies a file that names its owner: process,
host and start, and the time of its last sign of life.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from .console import log

RUN_LOCK = ".lock"  # of a run folder, by the process that trains in it
_PULSE, _DEAD = 60.0, 600.0  # seconds between two signs of life, and without one
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
    ended = threading.Event()
    try:
        # beside the lock, since Windows refuses to read a locked file
        _owner(path).write_text(f"process {os.getpid()} on {_host()}, since {_begun(os.getpid())}")
        threading.Thread(target=_beat, args=(_owner(path), ended), name="unveil-lock", daemon=True).start()
        yield None
    finally:
        ended.set()
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


def is_dead(path: Path) -> bool:
    """Whether the process that last held a lock file has ended, however that was; False where it cannot be known.

    On its own machine the lock tells, or where the file system has none, the process and the time at which it began.
    From another machine, whose locks it may not see, one is taken for dead that has not touched its file for ten
    minutes.
    """
    if not path.exists() or not (known := re.fullmatch(r"process (\d+) on (.*?)(?:, since (.*))?", _name(path))):
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            has_locks = True
    except Timeout:
        return False
    except OSError:
        has_locks = False
    process, host, begun = known.groups()
    if host == _host():
        return has_locks or (begun is not None and _begun(int(process)) != begun)
    return begun is not None and time.time() - _owner(path).stat().st_mtime > _DEAD


def status_of(run: Path, metadata: Mapping[str, Any]) -> str:
    """The status in the content of a `run.json`; `killed` for a run whose process has ended and could not write it."""
    status = str(metadata.get("status") or "unknown")
    return "killed" if status == "running" and is_dead(run / RUN_LOCK) else status


def _beat(owner: Path, ended: threading.Event) -> None:
    """Touch the file of the owner of a lock now and then, so that other machines see that it lives."""
    while not ended.wait(_PULSE):
        with suppress(OSError):  # a folder that is moved or full is found by those who work in it
            os.utime(owner)


def _host() -> str:
    return platform.node() or "this machine"


def _begun(process: int) -> str:
    """When a process began, to the second, in UTC; empty where there is none of this number."""
    try:
        return datetime.fromtimestamp(psutil.Process(process).create_time(), UTC).isoformat(timespec="seconds")
    except psutil.Error:
        return ""


def _owner(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _name(path: Path) -> str:
    with suppress(OSError):
        if name := _owner(path).read_text():
            return name
    return "a process that has just begun"
