"""Shards where they lie: on the disk, or behind an address such as `https://` or `s3://`, read by byte ranges."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple, Protocol

from ..runs.console import user_path
from .listing import is_remote, missing

_OPEN_FILES = 128
NEEDED = "Shards are .tar files: a folder of them, a pattern such as shards/{000..011}.tar, or an address of either"


class ShardFile(NamedTuple):
    """A shard: its name below the address, its bytes, and what changes whenever its content does."""

    name: str
    size: int
    version: str


class Place(Protocol):
    """Where shards are. `read` returns the bytes that are there, or raises OSError; threads may share it.

    `is_copied` says that a shard is copied here as a whole before it is read; `expect` names those that are read next.
    """

    @property
    def root(self) -> str: ...
    def __hash__(self) -> int: ...
    def find(self, pattern: str = "") -> list[ShardFile]: ...
    def content(self, name: str) -> bytes | None: ...
    def read(self, name: str, start: int, size: int) -> bytes: ...
    def location(self, name: str) -> str: ...
    @property
    def is_copied(self) -> bool: ...
    def expect(self, names: Sequence[str]) -> None: ...


def expand_braces(pattern: str) -> list[str]:
    """All names of a pattern: `{000..011}` counts, with as many digits as are written, `{a,b}` lists."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if counted:
        first, last = int(counted[1]), int(counted[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        words = [f"{number:0{len(counted[1])}d}" for number in numbers]
    else:
        words = match[1].split(",")
    rest = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + word + end for word, end in product(words, rest)]


def place_of(address: str) -> tuple[Place, str]:
    """Where the shards of an address are, and the pattern of their names there; empty for all of a folder."""
    folder, _, last = address.rpartition("/")
    if is_remote(address):
        from .remote_shards import RemotePlace  # which reads names of this module

        return (RemotePlace(folder), last) if last.lower().endswith(".tar") else (RemotePlace(address.rstrip("/")), "")
    path = user_path(address)
    if path.is_dir():
        return LocalPlace(path), ""
    whole = path.as_posix()
    start = min((whole.index(mark) for mark in "{*?[" if mark in whole), default=len(whole))
    base = whole[:start].rpartition("/")[0] or ("/" if whole.startswith("/") else ".")
    return LocalPlace(Path(base)), whole.removeprefix(base if base.endswith("/") else f"{base}/")


@dataclass(unsafe_hash=True)
class LocalPlace:
    """Shards in a folder. Open files are kept, and closed when no thread reads them any more."""

    folder: Path

    def __post_init__(self) -> None:
        self._lock, self._files = threading.Lock(), OrderedDict[str, _File]()

    def __reduce__(self) -> tuple[type[LocalPlace], tuple[Path]]:
        return LocalPlace, (self.folder,)  # another process opens the files itself

    @property
    def root(self) -> str:
        return str(self.folder)

    def find(self, pattern: str = "") -> list[ShardFile]:
        """The shards below the folder that a pattern names, each once; FileNotFoundError where one is not there."""
        names: dict[str, None] = {}
        for one in expand_braces(pattern or "**/*.tar"):
            matches = sorted(p for p in self.folder.glob(one) if p.is_file()) if set(one) & set("*?[") else []
            if not matches and (self.folder / one).is_file():
                matches = [self.folder / one]
            if not matches and pattern:
                raise FileNotFoundError(missing(self.folder / one, NEEDED))
            shown = (path.relative_to(self.folder) for path in matches)
            names |= {p.as_posix(): None for p in shown if not any(n.startswith(".") for n in p.parts)}
        states = [(name, (self.folder / name).stat()) for name in names]
        return [ShardFile(name, s.st_size, f"{s.st_size} {s.st_mtime_ns}") for name, s in states]

    def content(self, name: str) -> bytes | None:
        """The bytes of a file beside the shards; None where there is none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def read(self, name: str, start: int, size: int) -> bytes:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _File(self.folder / name)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(name)
        data = os.pread(file.descriptor, size, start)
        while len(data) < size and (more := os.pread(file.descriptor, size - len(data), start + len(data))):
            data += more
        return data

    def location(self, name: str) -> str:
        return str((self.folder / name).resolve())

    @property
    def is_copied(self) -> bool:
        return False

    def expect(self, names: Sequence[str]) -> None:
        """Nothing is to be done: every sample is at hand."""


class _File:
    """An open file, closed when nobody holds it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
