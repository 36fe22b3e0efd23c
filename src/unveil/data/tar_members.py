"""The members of a tar file that nobody vouches for: names, places and sizes, read from its headers alone."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

ReadAt = Callable[[int, int], bytes]  # (start, size) -> at most so many bytes

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 1 << 16  # bytes of an extended header, which holds a long name
_LARGEST = 1 << 30  # bytes of a member
_WINDOW = 4 << 20  # bytes of a request for headers
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """A file in a tar: its path, where its bytes start and how many there are."""

    path: str
    start: int
    size: int


def members(read_at: ReadAt, length: int, name: str, others: Counter[str]) -> Iterator[Member]:
    """The regular files of a tar of `length` bytes, in order; it is read forwards, headers only.

    Links, devices, hidden names, absolute paths, those that lead out of the archive and files above 1 GB are passed
    over and counted in `others`. Raises ValueError, which names the tar, where it is damaged or cut off.
    """
    position, extended = 0, dict[str, str]()
    while position < length:
        block = read_at(position, _BLOCK)
        if len(block) < _BLOCK:
            raise ValueError(_cut_off(name, length))
        if not block.strip(b"\0"):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            is_packed = position == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
            way = "unpack it to a plain .tar" if is_packed else "copy it again, or leave it out"
            raise ValueError(f"{name} is no tar file, or is damaged at byte {position:,} ({error}): {way}") from error
        start, size = position + _BLOCK, info.size
        if size < 0:  # base 256 has a sign, and positions would go back for ever
            raise ValueError(f"{name} is damaged at byte {position:,}: a size of {size:,} bytes")
        if is_extension := info.type in _EXTENSIONS:
            if size > _LONGEST_HEADER:
                raise ValueError(f"{name} has a header of {size:,} bytes at byte {position:,}: it is damaged")
            if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                extended |= _extended(read_at(start, size), is_pax=info.type == tarfile.XHDTYPE)
        else:
            size = int(extended.get("size", size))
        has_content = is_extension or info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        position = start + (-(-size // _BLOCK) * _BLOCK if has_content else 0)
        if position > length:
            raise ValueError(_cut_off(name, length))
        if is_extension:
            continue
        path, extended = extended.get("path", info.name), {}
        if info.isdir():
            continue
        if not info.isreg() or info.type == tarfile.GNUTYPE_SPARSE:
            others["link or device in a tar"] += 1
        elif (problem := _problem(path)) or size > _LARGEST:
            others[problem or "file above 1 GB in a tar"] += 1
        else:
            yield Member(path.removeprefix("./"), start, size)


def ahead(read_at: ReadAt) -> ReadAt:
    """The same, reading 4 MB at once: for storage where a request takes longer than its bytes."""
    start, window = 0, b""

    def read(place: int, size: int) -> bytes:
        nonlocal start, window
        if not start <= place <= place + size <= start + len(window):
            start, window = place, read_at(place, max(size, _WINDOW))
        return window[place - start :][:size]

    return read


def _cut_off(name: str, length: int) -> str:
    return f"{name} is cut off after {length:,} bytes: copy it again, or leave it out"


def _extended(content: bytes, is_pax: bool) -> dict[str, str]:
    """The path and size in an extended header: lines `length key=value` of PAX, or the long name of GNU."""
    if not is_pax:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    fields: dict[str, str] = {}
    while content:
        digits = content.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[len(digits) + 1 : length].removesuffix(b"\n").partition(b"=")
        if length <= len(digits) or not equals:
            break
        if key == b"path" or (key == b"size" and value.isdigit()):
            fields[key.decode()] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return fields


def _problem(path: str) -> str:
    """Why a path is not read; empty where it is."""
    parts = path.removeprefix("./").split("/")
    if path.startswith(("/", "\\")) or ".." in parts or "" in parts or "\0" in path:
        return "unsafe path in a tar"
    return "hidden file in a tar" if any(part.startswith(".") for part in parts) else ""


def split_key(path: str, at_last_dot: bool = False) -> tuple[str, str]:
    """The key of a member's sample, and its suffix in lower case: `a/b.rgb.jpg` is rgb.jpg of a/b.

    `at_last_dot` is for archives that are no WebDataset, whose names have dots of their own: jpg of a/b.rgb.
    """
    folder, slash, base = path.rpartition("/")
    stem, _, suffix = base.rpartition(".") if at_last_dot else base.partition(".")
    return folder + slash + stem, suffix.lower()
