"""Locks between processes, of one machine or of several that share a folder.

The operating system frees the lock of a process that ends, however it ends. Not every network drive has locks that
hold from one machine to another. So beside the lock lies a file that names its owner: process, host and start, whether
it has let go of the lock, and the time of its last sign of life. The lock of an owner on another machine is free when
it has let go of it, or has given no sign of life for ten minutes.
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

from .console import duration, log, quoted
from .regular_files import read_text

RUN_LOCK = ".lock"  # of a run folder, by the process that trains in it
_PULSE, _DEAD = 60.0, 600.0  # seconds between two signs of life, and without one
_PATIENCE = 0.2  # seconds: `holder` has a free lock for a moment while it tests it
_ENDED = ", ended"  # at the end of the line of an owner that has let go of its lock
_LINE = re.compile(rf"process (\d+) on (.*?)(?:, since (.*?))?({_ENDED})?")


@contextmanager
def hold(path: Path, waits: bool = False) -> Iterator[str | None]:
    """Hold a lock file if it is free: None, else the process that holds it, such as `process 12 on host`.

    The file stays: were it removed, one process could lock the old file and another the new one. Where the file
    system has no locks, a message says so, and the file of the owner is the lock. An owner on another machine that has
    not let go of it may live: with `waits` it is waited until it gives a sign of life, or is taken for dead.
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
        if other := _living_owner(path, lock.is_locked, waits):
            yield other
            return
        # beside the lock, since Windows refuses to read a locked file
        line = f"process {os.getpid()} on {_host()}, since {_begun(os.getpid())}"
        _write_owner(path, line)
        threading.Thread(target=_beat, args=(_owner(path), ended), name="unveil-lock", daemon=True).start()
        try:
            yield None
        finally:
            ended.set()
            with suppress(OSError):  # a folder that is full
                if _name(path) == quoted(line):  # not a folder that was moved, or another in its place
                    _write_owner(path, f"{line}{_ENDED}")
    finally:
        lock.release()


def holder(path: Path) -> str | None:
    """The process that holds a lock file; None where it is free."""
    if not path.exists():
        return None
    try:
        with FileLock(path).acquire(blocking=False):
            return _living_owner(path, True)
    except Timeout:
        return _name(path)
    except OSError:  # a file system without locks
        return _living_owner(path, False)


def _living_owner(path: Path, has_locks: bool, waits: bool = False) -> str | None:
    """The owner of a lock that is free as far as this machine sees, where it may live all the same.

    That is one on another machine whose locks are not seen here, or any where the file system has no locks.
    """
    name = _name(path)
    known = _LINE.fullmatch(name)
    if known is None or known[4] or (known[2] == _host() and has_locks):
        return None
    if known[2] == _host():
        return name if known[3] and _begun(int(known[1])) == known[3] else None
    if not known[3]:  # of a release that gave no signs of life
        return None
    first, silent = _touched(_owner(path)), max(0.0, _now(path) - _touched(_owner(path)))
    if silent < _DEAD and waits:
        log(f"waiting, at most {duration(_DEAD - silent)}, for a sign of life of {name}: it has not let go of {path}")
    while silent < _DEAD:
        if not waits or _touched(_owner(path)) != first:
            return f"{name}, which has given a sign of life in the last ten minutes"
        time.sleep(_PULSE / 20)
        silent += _PULSE / 20
    return None


def _now(path: Path) -> float:
    """The time by the clock of the file system, which another machine may set: that of a touched lock file."""
    with suppress(OSError):
        _touch(path)
        return path.lstat().st_mtime
    return time.time()


def _touch(path: Path) -> None:
    """Set the time of a file, not of what a link in its place leads to, where the system can."""
    os.utime(path, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def _touched(path: Path) -> float:
    """When a file was touched last; never for one that is gone."""
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def is_dead(path: Path) -> bool:
    """Whether the process that last held a lock file has ended, however that was; False where it cannot be known.

    On its own machine the lock tells, or where the file system has none, the process and the time at which it began.
    From another machine, whose locks it may not see, one is taken for dead that has not touched its file for ten
    minutes.
    """
    if not path.exists() or not (known := _LINE.fullmatch(_name(path))):
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            has_locks = True
    except Timeout:
        return False
    except OSError:
        has_locks = False
    process, host, begun, ended = known.groups()
    if ended:
        return True
    if host == _host():
        return has_locks or (begun is not None and _begun(int(process)) != begun)
    return begun is not None and time.time() - _touched(_owner(path)) > _DEAD


def status_of(run: Path, metadata: Mapping[str, Any]) -> str:
    """The status in the content of a `run.json`; `killed` for a run whose process has ended and could not write it."""
    status = str(metadata.get("status") or "unknown")
    return "killed" if status == "running" and is_dead(run / RUN_LOCK) else status


def _beat(owner: Path, ended: threading.Event) -> None:
    """Touch the file of the owner of a lock now and then, so that other machines see that it lives."""
    while not ended.wait(_PULSE):
        with suppress(OSError):  # a folder that is moved or full is found by those who work in it
            _touch(owner)


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


def _write_owner(path: Path, line: str) -> None:
    """Replace the file of the owner as a whole; a link in its place is removed, not followed."""
    temporary = path.with_name(f".{path.name}.owner.{os.getpid()}.{threading.get_ident()}.part")
    try:
        temporary.write_text(line)
        temporary.replace(_owner(path))
    finally:
        temporary.unlink(missing_ok=True)


def _name(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        if name := read_text(_owner(path))[:300]:
            return quoted(name)
    return "a process that has just begun"
