"""One shard of a pack: a tar whose bytes depend on its samples alone, and the table of these."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO

import pyarrow as pa

from .decode import EXTENSIONS, Unreadable, read_header
from .pack_members import PackedSample
from .shard_table import NONE, from_bytes, to_bytes

_END = bytes(2 * tarfile.BLOCKSIZE)  # of an archive
_LABEL = 2 * tarfile.BLOCKSIZE  # bytes of the member that holds a class


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard: the table of its samples, its bytes and checksum, and the place in the order after it."""

    rows: pa.Table
    filesize: int
    sha256: str
    next: int
    broken: dict[str, str]

    def to_bytes(self) -> bytes:
        facts = {"filesize": self.filesize, "sha256": self.sha256, "next": self.next, "broken": self.broken}
        return to_bytes(self.rows.replace_schema_metadata({"shard": json.dumps(facts)}))

    @classmethod
    def from_bytes(cls, content: bytes) -> FinishedShard:
        rows = from_bytes(content)
        return cls(rows.replace_schema_metadata(None), **json.loads(rows.schema.metadata[b"shard"]))


class ShardWriter:
    """A tar of samples, whose bytes depend on these alone: no times, no owners."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position, self.digest = file, 0, sha256()
        self.rows: list[dict[str, Any]] = []

    def fits(self, sample: PackedSample, limit: int) -> bool:
        """Whether a shard of this many bytes has room for another sample; it has for the first, however large."""
        members = sum(tarfile.BLOCKSIZE + _padded(len(content)) for content in sample.members.values())
        return not self.rows or self.position + members + _LABEL + len(_END) <= limit

    def add(self, key: str, sample: PackedSample, label: int) -> None:
        row: dict[str, Any] = {"key": key, "identity": sample.identity, "label": label}
        row["height"], row["width"] = sample.size
        content, kind = next(iter(sample.members.values())), ""
        try:
            header = read_header(content)
            kind = json.dumps([header.format, header.mode, header.channels, header.bits, header.has_alpha])
        except Unreadable:  # of a map that is no picture
            pass
        row["header"] = kind
        members = sample.members | ({"cls": str(label).encode()} if label >= 0 else {})
        for suffix, content in members.items():
            row[f"size {suffix}"] = len(content)
            row[f"start {suffix}"] = self._member(f"{key}.{suffix}", content)
        self.rows.append(row)

    def _member(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
        self._put(head)
        start = self.position
        self._put(content + bytes(_padded(len(content)) - len(content)))
        return start

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.position += len(data)

    def finish(self, next_place: int, broken: dict[str, str], number: int) -> FinishedShard:
        """End the archive; the shard that it is."""
        self._put(_END)
        self.file.flush()
        os.fsync(self.file.fileno())
        return FinishedShard(_as_table(self.rows, number), self.position, self.digest.hexdigest(), next_place, broken)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _as_table(rows: Sequence[Mapping[str, Any]], number: int) -> pa.Table:
    columns: dict[str, Any] = {"key": pa.array([row["key"] for row in rows], pa.string())}
    columns["shard"] = pa.array([number] * len(rows), pa.int32())
    columns["header"] = pa.array([row["header"] for row in rows], pa.string())
    kinds = {"label": pa.int32(), "identity": pa.uint64(), "height": pa.int32(), "width": pa.int32()}
    columns |= {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    for name in sorted({name for row in rows for name in row if name.startswith(("start ", "size "))}):
        absent = NONE if name.startswith("start ") else 0
        columns[name] = pa.array([row.get(name, absent) for row in rows], pa.int64())
    return pa.table(columns)


def unique_keys(names: Sequence[str]) -> list[str]:
    """Keys of samples in the WebDataset layout, from their names: without extension and dots, no two the same."""
    keys: list[str] = []
    counts: dict[str, int] = {}
    for name in names:
        stem, extension = os.path.splitext(name)
        text = stem if extension.lower() in EXTENSIONS else name
        key = re.sub(r"[^\w/ +=@~-]+", "_", text.encode("utf-8", "backslashreplace").decode()).strip("/") or "_"
        while (number := counts.get(key, 0)) > 0:
            counts[key] = number + 1
            key = f"{key}-{number + 1}"
        counts[key] = 1
        keys.append(key)
    return keys
