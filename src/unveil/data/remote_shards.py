"""Shards behind an address such as `https://` or `s3://`: by requests for ranges of bytes, else copied one by one."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from ..runs.console import log
from .extras import optional
from .shard_files import NEEDED, LocalPlace, ShardFile, expand_braces

T = TypeVar("T")

_TRIES = 4  # of a request
_FIRST_PAUSE = 0.2  # seconds before the second try, twice as long before each further one
_HELD = 16  # copies of shards that stay on the disk
_AHEAD = 2  # shards that are copied before their turn


class ShardCopies:
    """Copies of shards in a temporary folder, the latest 16 of them, which goes with this object.

    `copy(name, path)` writes a shard to a path.
    """

    def __init__(self, copy: Callable[[str, Path], None]) -> None:
        self._copy = copy
        self._folder = tempfile.TemporaryDirectory(prefix="unveil-shards-")
        self._pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="unveil-copy")
        self._lock = threading.Lock()
        self._copies: OrderedDict[str, Future[LocalPlace]] = OrderedDict()
        self._next: dict[str, str] = {}

    def expect(self, names: Sequence[str]) -> None:
        """The order in which shards will be read."""
        with self._lock:
            self._next = dict(pairwise(names))

    def read(self, name: str, start: int, size: int) -> bytes:
        """Bytes of a shard, once it is copied; what its copying raises is raised."""
        copy = self._of(name)
        ahead = name
        for _ in range(_AHEAD):
            if (ahead := self._next.get(ahead, "")) == "":
                break
            self._of(ahead, is_read=False)
        return copy.result().read("shard.tar", start, size)

    def _of(self, name: str, is_read: bool = True) -> Future[LocalPlace]:
        with self._lock:
            copy = self._copies.get(name)
            if copy is None or (copy.done() and copy.exception()):
                copy = self._copies[name] = self._pool.submit(self._made, name)
                for old in [n for n, c in self._copies.items() if c.done()][: max(0, len(self._copies) - _HELD)]:
                    _remove(self._copies.pop(old))
            elif is_read:
                self._copies.move_to_end(name)
            return copy

    def _made(self, name: str) -> LocalPlace:
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        self._copy(name, folder / "shard.tar")
        place = LocalPlace(folder)
        place.read("shard.tar", 0, 1)  # opens it, so that it can be read after its name is removed
        return place


def _remove(copy: Future[LocalPlace]) -> None:
    if copy.exception() is None:
        (copy.result().folder / "shard.tar").unlink()


@dataclass(unsafe_hash=True)
class RemotePlace:
    """Shards below an address, read by fsspec: `https`, `s3`, `gs` and all others that it knows.

    A request that fails is repeated. Raises ValueError where fsspec, or its package for this storage, is missing.
    """

    address: str

    def __post_init__(self) -> None:
        self._probed: str | None = None
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

    def __reduce__(self) -> tuple[type[RemotePlace], tuple[str]]:
        return RemotePlace, (self.address,)  # another process connects anew

    @property
    def root(self) -> str:
        return self.address

    def find(self, pattern: str = "") -> list[ShardFile]:
        """The shards that a pattern names; FileNotFoundError where one is not there, or none."""
        names: list[str] = []
        for one in expand_braces(pattern or "*.tar"):
            if set(one) & set("*?["):
                matches = _patiently(partial(self._fs.glob, f"{self._path}/{one}"), self.address)
                names += sorted(str(match).removeprefix(self._path).lstrip("/") for match in matches)
            else:
                names.append(one)
        if not names:
            raise FileNotFoundError(f"no .tar file at {self.address}/{pattern or '*.tar'}. {NEEDED}")
        return [self._state(name) for name in dict.fromkeys(names)]

    def _state(self, name: str) -> ShardFile:
        self._probed = name
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
            data = bytes(_patiently(lambda: self._fs.cat_file(f"{self._path}/{name}"), f"{self.address}/{name}"))
        except FileNotFoundError:
            return None
        self._probed = self._probed or name
        return data

    def read(self, name: str, start: int, size: int) -> bytes:
        if self.is_copied:
            return self._copies.read(name, start, size)
        request = partial(self._fs.cat_file, f"{self._path}/{name}", start=start, end=start + size)
        return bytes(_patiently(request, f"{self.address}/{name}"))

    @cached_property
    def is_copied(self) -> bool:
        """Whether its server sends whole files only, which a first request tells."""
        if self.address.partition("://")[0] not in ("http", "https") or self._probed is None:
            return False
        try:
            with self._fs.open(f"{self._path}/{self._probed}", block_size=1, cache_type="none") as file:
                file.seek(1)
                file.read(1)
        except ValueError:  # as fsspec says it
            log(f"note: {self.address} does not serve parts of files; each shard is copied to this machine to be read")
            return True
        return False

    def expect(self, names: Sequence[str]) -> None:
        """Copy the first of these shards ahead of their turn, each further one when the one before is read."""
        if self.is_copied:
            self._copies.expect(names)

    @cached_property
    def _copies(self) -> ShardCopies:
        return ShardCopies(self._copy)

    def _copy(self, name: str, path: Path) -> None:
        _patiently(partial(self._fs.get_file, f"{self._path}/{name}", str(path)), f"{self.address}/{name}")

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
