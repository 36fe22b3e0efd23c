"""Shards where they lie: on the disk, or behind an address such as `https://` or `s3://`, read by byte ranges."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ..runs.console import user_path
from .decode import optional
from .listing import is_remote, missing

T = TypeVar("T")

_OPEN_FILES = 128
_TRIES = 4  # of a request
_FIRST_PAUSE = 0.2  # seconds before the second try, twice as long before each further one
_NEEDED = "Shards are .tar files: a folder of them, a pattern such as shards/{000..011}.tar, or an address of either"


class ShardFile(NamedTuple):
    """A shard: its name below the address, its bytes, and what changes whenever its content does."""

    name: str
    size: int
    version: str


class Place(Protocol):
    """Where shards are. `read` returns exactly the bytes asked for, or raises OSError; threads may share it."""

    @property
    def root(self) -> str: ...
    def __hash__(self) -> int: ...
    def find(self, pattern: str = "") -> list[ShardFile]: ...
    def content(self, name: str) -> bytes | None: ...
    def read(self, name: str, start: int, size: int) -> bytes: ...
    def location(self, name: str) -> str: ...


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
        return (RemotePlace(folder), last) if last.lower().endswith(".tar") else (RemotePlace(address.rstrip("/")), "")
    path = user_path(address)
    if path.is_dir():
        return LocalPlace(path), ""
    whole = path.as_posix()
    start = min((whole.index(mark) for mark in "{*?[" if mark in whole), default=len(whole))
    base = whole[:start].rpartition("/")[0] or ("/" if whole.startswith("/") else ".")
    return LocalPlace(Path(base)), whole.removeprefix(base if base.endswith("/") else f"{base}/")


class LocalPlace:
    """Shards in a folder. Open files are kept, and closed when no thread reads them any more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open()

    def _open(self) -> None:
        self._lock, self._files = threading.Lock(), OrderedDict[str, _File]()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalPlace) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open()

    @property
    def root(self) -> str:
        return str(self.folder)

    def find(self, pattern: str = "") -> list[ShardFile]:
        """The shards below the folder that a pattern names, each once; FileNotFoundError where one is not there."""
        names: dict[str, None] = {}
        for part in expand_braces(pattern or "**/*.tar"):
            found = sorted(p for p in self.folder.glob(part) if p.is_file()) if set(part) & set("*?[") else []
            if not found and (self.folder / part).is_file():
                found = [self.folder / part]
            if not found and pattern:
                raise FileNotFoundError(missing(self.folder / part, _NEEDED))
            shown = (path.relative_to(self.folder) for path in found)
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


class _File:
    """An open file, closed when nobody holds it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class RemotePlace:
    """Shards below an address, read by fsspec: `https`, `s3`, `gs` and all others that it knows.

    A request that fails is repeated. Raises ValueError where fsspec, or its package for this storage, is missing.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._open()

    def _open(self) -> None:
        scheme = self.address.partition("://")[0]
        extra = {"http": "remote", "https": "remote", "s3": "s3"}.get(scheme, "remote")
        needed = f"{scheme}:// is read with fsspec: pip install 'unveil[{extra}]'"
        fsspec = optional("fsspec", needed)
        try:
            self._fs, self._path = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise ValueError(f"{needed} ({error})") from error
        except ValueError as error:
            raise ValueError(f"{self.address}: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePlace) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.address = state["address"]
        self._open()

    @property
    def root(self) -> str:
        return self.address

    def find(self, pattern: str = "") -> list[ShardFile]:
        """The shards that a pattern names; FileNotFoundError where one is not there, or none."""
        names: list[str] = []
        for part in expand_braces(pattern or "*.tar"):
            if set(part) & set("*?["):
                matches = _patiently(partial(self._fs.glob, f"{self._path}/{part}"), self.address)
                names += sorted(str(match).removeprefix(self._path).lstrip("/") for match in matches)
            else:
                names.append(part)
        if not names:
            raise FileNotFoundError(f"no .tar file at {self.address}/{pattern or '*.tar'}. {_NEEDED}")
        return [self._state(name) for name in dict.fromkeys(names)]

    def _state(self, name: str) -> ShardFile:
        facts = _patiently(lambda: self._fs.info(f"{self._path}/{name}"), f"{self.address}/{name}")
        size = facts.get("size")
        if size is None:
            raise ValueError(f"the server of {self.address}/{name} does not say how many bytes it has; copy it here")
        version = next(
            (str(facts[key]) for key in ("ETag", "etag", "md5", "mtime", "LastModified") if key in facts), ""
        )
        return ShardFile(name, int(size), f"{size} {version}")

    def content(self, name: str) -> bytes | None:
        """The bytes of a file beside the shards; None where there is none."""
        try:
            return bytes(_patiently(lambda: self._fs.cat_file(f"{self._path}/{name}"), f"{self.address}/{name}"))
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int, size: int) -> bytes:
        where = f"{self.address}/{name}"

        def request() -> bytes:
            data = bytes(self._fs.cat_file(f"{self._path}/{name}", start=start, end=start + size))
            if len(data) > size:  # the server sent the whole file
                data = data[start : start + size]
            return data

        return _patiently(request, where)

    def location(self, name: str) -> str:
        return f"{self.address}/{name}"


def _patiently(request: Callable[[], T], where: str) -> T:
    """What a request returns, repeated where it fails for another reason than that nothing is there."""
    for attempt in range(_TRIES):
        try:
            return request()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each storage has errors of its own
            if attempt == _TRIES - 1:
                raise OSError(
                    f"{where} cannot be read, also at the {_TRIES}th try: {error or type(error).__name__}"
                ) from error
            time.sleep(_FIRST_PAUSE * 2**attempt)
    raise AssertionError
