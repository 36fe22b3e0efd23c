"""Where the samples of a set of shards lie: a row for each, by key, with the place of every member."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int8, Int32, Int64

from .tar_members import Member, split_key

TABLE = "index.arrow"  # of a pack, beside its shards
KIND = "wids-shard-index-v1"  # the layout of an index.json, that of the webdataset library
_MOST_SUFFIXES = 64  # of a WebDataset; names with dots of their own have more
NONE = -1  # the start of a member that a sample lacks


@dataclass(frozen=True)
class Members:
    """A member of each sample: which of `suffixes` it is, its start in the shard and its size; NONE where none is."""

    suffixes: tuple[str, ...]
    kind: Int8[np.ndarray, " N"] = field(repr=False)
    start: Int64[np.ndarray, " N"] = field(repr=False)
    size: Int64[np.ndarray, " N"] = field(repr=False)

    def has(self, row: int) -> bool:
        return bool(self.start[row] != NONE)

    def suffix(self, row: int) -> str:
        return self.suffixes[int(self.kind[row])]


@dataclass(frozen=True)
class ShardTable:
    """The samples of shards. `shards` are their names below the address; `facts` is what a pack says of itself.

    Columns of `rows`: `key`, `shard`, and `start SUFFIX` and `size SUFFIX` of each kind of member; of a pack also
    `label`, `identity` (of the content that was packed), `height`, `width` and `header`.
    """

    shards: tuple[str, ...]
    rows: pa.Table = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __getstate__(self) -> dict[str, Any]:  # a mapped file is not sent to another process, its content is
        return {"shards": self.shards, "rows": to_bytes(self.rows), "facts": dict(self.facts)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"rows": from_bytes(state["rows"])})

    @property
    def suffixes(self) -> list[str]:
        """The kinds of members, in the order of the table."""
        return [name.removeprefix("start ") for name in self.rows.column_names if name.startswith("start ")]

    def key(self, row: int) -> str:
        return str(self._keys[row].as_py())

    @cached_property
    def _keys(self) -> pa.StringArray:
        return _whole(self.rows["key"])

    @cached_property
    def keys_differ(self) -> bool:
        """Whether no two samples have the same key, in whichever shards."""
        return bool(pc.count_distinct(self._keys).as_py() == len(self))

    @cached_property
    def shard(self) -> Int32[np.ndarray, " N"]:
        return self.numbers("shard")

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, one a row, without a copy."""
        return np.asarray(_whole(self.rows[column]).to_numpy())

    def place(self, suffixes: Sequence[str]) -> Members:
        """The first of these members that each sample has."""
        start, size = np.full(len(self), NONE, np.int64), np.zeros(len(self), np.int64)
        kind = np.full(len(self), NONE, np.int8)
        for number, suffix in enumerate(suffixes):
            lacks = start == NONE
            start[lacks] = self.numbers(f"start {suffix}")[lacks]
            size[lacks] = self.numbers(f"size {suffix}")[lacks]
            kind[lacks & (start != NONE)] = number
        return Members(tuple(suffixes), kind, start, size)

    def only(self, rows: np.ndarray) -> ShardTable:
        """The samples in these rows, in this order."""
        return ShardTable(self.shards, self.rows.take(pa.array(rows)), self.facts)


def tabulate(shards: Mapping[str, Sequence[Member]], others: Counter[str]) -> pa.Table:
    """The samples of shards, by the members of each: those of one shard whose key is the same.

    A key is the path up to the first dot of the name; up to the last one where names have dots of their own.
    Of members of the same key and suffix the last is read, as tar does; the others are counted in `others`.
    """
    suffixes = {split_key(member.path)[1] for listed in shards.values() for member in listed}
    at_last_dot = len(suffixes) > _MOST_SUFFIXES
    keys: list[str] = []
    numbers: list[int] = []
    columns: dict[str, tuple[list[int], list[int], list[int]]] = {}  # rows, starts, sizes by suffix
    for number, listed in enumerate(shards.values()):
        row_of: dict[str, int] = {}
        for member in listed:
            key, suffix = split_key(member.path, at_last_dot)
            row = row_of.setdefault(key, len(keys))
            if row == len(keys):
                keys.append(key)
                numbers.append(number)
            rows, starts, sizes = columns.setdefault(suffix, ([], [], []))
            rows.append(row)
            starts.append(member.start)
            sizes.append(member.size)
    made: dict[str, Any] = {"key": pa.array(map(_printable, keys), pa.string()), "shard": pa.array(numbers, pa.int32())}
    for suffix in sorted(columns):
        rows, starts, sizes = columns[suffix]
        if replaced := len(rows) - len(np.unique(rows)):
            others["file in a tar with the name of a later one"] += replaced
        for name, values, absent in (("start", starts, NONE), ("size", sizes, 0)):
            column = np.full(len(keys), absent, np.int64)
            column[rows] = values
            made[f"{name} {suffix}"] = pa.array(column)
    return pa.table(made)


def _printable(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()  # of names that are not UTF-8, the odd bytes escaped


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def to_bytes(rows: pa.Table) -> bytes:
    """A table as an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return bytes(sink.getvalue())


def from_bytes(content: Any) -> pa.Table:
    """The table in an Arrow file: bytes, or a buffer that is mapped. Raises ValueError for anything else."""
    try:
        return pa.ipc.open_file(pa.BufferReader(content)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"no table of samples ({error})") from error


def sha256(content: Any) -> str:
    """The checksum of bytes, as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()
