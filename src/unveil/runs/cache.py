"""Results that are the same for every run, kept in one folder of the user; what is in it can be deleted at any time."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

from .atomic import replacing

_LIMIT = 2 << 30  # bytes of all entries
_MAGIC = b"unveil cache 1\n"
_CHECKSUM = 16  # bytes
_SUFFIX = ".entry"


def cache_folder() -> Path | None:
    """Where results are cached: $UNVEIL_CACHE, else $XDG_CACHE_HOME/unveil, else ~/.cache/unveil.

    On macOS the last is ~/Library/Caches/unveil. None where UNVEIL_CACHE is `off`, or nobody's home is known.
    """
    if own := os.environ.get("UNVEIL_CACHE", ""):
        return None if own == "off" else Path(own)
    if (base := os.environ.get("XDG_CACHE_HOME", "")) and os.path.isabs(base):  # as the XDG specification demands
        return Path(base) / "unveil"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "unveil"


def cached(kind: str, key: str) -> bytes | None:
    """What was `store`d; None where that was never done, was removed, or is damaged, which is then removed.

    `kind` names what is stored and the version of its format, such as `headers-1`: a folder.
    """
    path = _path(kind, key)
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _CHECKSUM
    if content[:start] != _MAGIC + _checksum(content[start:]):
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)  # what was not used for longest is removed first
    return content[start:]


def store(kind: str, key: str, content: bytes) -> bool:
    """Store a result under any key, as a whole or not at all, and remove what was unused for longest beyond 2 GB.

    False where the folder cannot be written, the disk is full, or nothing is cached.
    """
    path = _path(kind, key)
    if path is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(_MAGIC + _checksum(content) + content)
    except OSError:
        return False
    _shrink(path.parents[1], path)
    return True


def _path(kind: str, key: str) -> Path | None:
    folder = cache_folder()
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return None if folder is None else folder / kind / f"{digest}{_SUFFIX}"


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest()


def _shrink(folder: Path, newest: Path) -> None:
    """Remove the entries that were unused for longest, until the rest fits; another process may do the same."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob(f"*/*{_SUFFIX}*"):  # with what killed processes have left
        with suppress(OSError):
            state = path.stat()
            entries.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= _LIMIT:
            return
        if path != newest:
            with suppress(OSError):
                path.unlink()
            total -= size
