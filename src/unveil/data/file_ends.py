"""As much of a file as tells its header and whether it is the same as another."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from ..runs.regular_files import open_regular
from .decode import Unreadable
from .file_names import mix
from .regular_files import check_bytes

_HEAD, _TAIL = 1 << 16, 1 << 13
_CODED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG
_FRESH = 2 * 10**9  # ns: a file may change twice within the clock tick of its file system
_WAITING = 16  # threads that wait for answers of the file system
_AT_ONCE = 2048  # files that a thread looks up at a time


@dataclass(frozen=True)
class Ends:
    """The first 64 KB, the last 8 KB and the size in bytes of a JPEG or PNG; of other files, and of short ones, all.

    They stand for the whole: its size, and the last bytes of its entropy code or the checksums
    that are there, differ with its pixels.
    """

    start: bytes
    stop: bytes = b""
    size: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.stop

    @classmethod
    def within(cls, content: bytes) -> Ends:
        """The ends of a file whose whole content has been read."""
        if len(content) <= _HEAD + _TAIL or not content.startswith(_CODED):
            return cls(content)
        return cls(content[:_HEAD], content[-_TAIL:], len(content))

    @classmethod
    def of_file(cls, path: Path, name: str) -> Ends:
        """Those of a file; no more of it is read. Raises `Unreadable`."""
        try:
            with os.fdopen(open_regular(path), "rb", buffering=0) as file:
                start = _read(file.fileno(), _HEAD + _TAIL)
                if len(start) < _HEAD + _TAIL:
                    return cls(start)
                check_bytes(size := os.fstat(file.fileno()).st_size, name)
                if not start.startswith(_CODED) or size <= _HEAD + _TAIL:
                    return cls(start + _read(file.fileno(), max(0, size - len(start))))
                file.seek(-_TAIL, os.SEEK_END)
                return cls(start[:_HEAD], _read(file.fileno(), _TAIL), size)
        except OSError as error:
            raise Unreadable(name, error.strerror or str(error)) from error


def _read(descriptor: int, count: int) -> bytes:
    """So many bytes, or all up to the end; one call reads 2 GB at most, of a pipe less."""
    pieces = []
    while count > 0 and (piece := os.read(descriptor, count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def stamps(root: Path, names: Sequence[str], hashes: UInt64[np.ndarray, " K"]) -> UInt64[np.ndarray, " K"]:
    """A number for each file below a folder, of its name's hash, its size, and when its content and inode changed.

    The second time tells a file that another of its size and its date has replaced (`cp -p`, `rsync -t`). The number
    is 0 of a file that is not there, or was changed within the last two seconds: it may be again, and look the same.
    """
    portions = [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
    with ThreadPoolExecutor(_WAITING, thread_name_prefix="unveil-stat") as pool:
        states = list(pool.map(lambda some: _states(f"{root}{os.sep}", some), portions))
    all_states = np.concatenate(states, axis=1) if states else np.zeros((3, 0), np.int64)
    numbers = hashes
    for state in all_states:
        numbers = mix(numbers ^ state.astype(np.uint64))
    size, changed, _ = all_states
    return np.where((size < 0) | (changed > time.time_ns() - _FRESH), np.uint64(0), numbers)


def _states(root: str, names: Sequence[str]) -> np.ndarray:
    """Sizes, and times of change of content and inode in ns, of files; -1 where they cannot be looked up."""
    states = np.full((3, len(names)), -1, np.int64)
    for place, name in enumerate(names):
        try:
            state = os.stat(root + name)
        except OSError:
            continue
        states[:, place] = state.st_size, state.st_mtime_ns, state.st_ctime_ns
    return states
