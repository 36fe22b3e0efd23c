"""Locks by files, for processes of one machine or of several that share a folder.

A lock is a row of files `<name>.<n>`. Whoever creates the next number holds it; making a file that must not exist is
atomic, also on network drives. Files are never removed, so two processes can never hold one lock, and a lock that was
let go, or whose process is dead, is taken by creating the next number.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

BEAT = 10.0  # seconds between signs of life
DEAD = 120.0  # seconds without one after which a process of another machine counts as dead
_FREE = "free"


def holder(folder: Path, name: str) -> str | None:
    """Who holds a lock, in words; None where nobody who lives does."""
    newest = _newest(folder, name)
    return None if newest is None else _living(folder / f"{name}.{newest}")


@contextmanager
def held(folder: Path, name: str) -> Iterator[bool]:
    """Hold a lock, if nobody does; whether it is held is the answer. A thread gives signs of life meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = _newest(folder, name)
    if newest is not None and _living(folder / f"{name}.{newest}"):
        yield False
        return
    mine = folder / f"{name}.{0 if newest is None else newest + 1}"
    try:
        with mine.open("x") as file:
            json.dump(_myself(), file)
    except FileExistsError:  # another process was quicker
        yield False
        return
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(mine, ended), daemon=True)
    beats.start()
    try:
        yield True
    finally:
        ended.set()
        beats.join()
        mine.write_text(json.dumps(_FREE))


def _beat(file: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            os.utime(file)
        except OSError:
            continue  # a network drive may be away for a while; the next beat tells


def _newest(folder: Path, name: str) -> int | None:
    numbers = [path.suffix[1:] for path in folder.glob(f"{name}.*") if path.stem == name]
    return max((int(n) for n in numbers if n.isdecimal()), default=None)


def _myself() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "process": process.pid, "started": process.create_time()}


def _living(file: Path) -> str | None:
    """The process that a lock's file names, where it lives."""
    try:
        owner = json.loads(file.read_text())
        silent = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return None
    except ValueError:  # made, and not written yet
        return "a process that is just beginning" if time.time() - file.stat().st_mtime < DEAD else None
    if owner == _FREE:
        return None
    told = f"process {owner['process']} on {owner['host']}"
    if owner["host"] != socket.gethostname():
        return told if silent < DEAD else None
    try:
        # a number is given again after a restart: the same process began at the same time
        process = psutil.Process(owner["process"])
        is_same = abs(process.create_time() - owner["started"]) < 1
        lives = is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        lives = False
    return told if lives else None
