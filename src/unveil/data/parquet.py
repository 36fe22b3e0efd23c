"""Rows of Parquet files, read by row group."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..runs.regular_files import check_regular
from .decode import Unreadable
from .table import are_filled, within

_HELD_BYTES = 1 << 30  # of encoded row groups kept in memory


class ParquetRows:
    """The rows of one or several Parquet files, in order; `name` is file[row].

    Row groups are read on demand, and the latest are cached, up to 1 GB of encoded images, so a big file need not fit
    in memory. Threads may share one; a process that receives it opens the files anew. Raises `ValueError` where a file
    is damaged, or has other columns than the first.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._resolved = [path.resolve() for path in paths]
        self._open()
        self.schema: pa.Schema = self._files[0].schema_arrow
        for path, file in zip(paths, self._files, strict=True):
            if file.schema_arrow.names != self.schema.names:
                raise ValueError(f"{path} has other columns than {paths[0]}; give files of one dataset")
        sizes = [file.metadata.num_rows for file in self._files]
        self._starts: list[int] = [0, *accumulate(sizes)]  # the first row of each file
        self._groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.num_row_groups)]
        group_sizes = (self._files[f].metadata.row_group(g).num_rows for f, g in self._groups)
        self._ends: list[int] = list(accumulate(group_sizes))  # the row after the last, for each row group

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[int, str], pa.Array] = OrderedDict()
        self._files = []
        for path in self.paths:
            try:
                check_regular(path)
            except OSError as error:
                raise ValueError(f"{path} {error}: leave it out") from error
            try:
                self._files.append(pq.ParquetFile(path, memory_map=True))
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path} is no Parquet file, or a damaged one: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_held", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        f = self._file(index)
        return f"{self.paths[f].name}[{index - self._starts[f]}]"

    def location(self, index: int) -> str:
        f = self._file(index)
        return f"{self._resolved[f]}[{index - self._starts[f]}]"

    def folders(self, index: int) -> list[Path]:
        return [self.paths[self._file(index)].parent]

    def cell(self, column: str, members: Sequence[str], index: int) -> Any:
        group = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[group - 1] if group else 0)
        return self._rows(group, column, members, index)[row].as_py()

    def values(self, column: str, members: Sequence[str]) -> Iterator[Any]:
        for file in self._files:
            yield from within(file.read(columns=[column]).column(0), members).to_pylist()

    def filled(self, column: str, members: Sequence[str]) -> Iterator[bool]:
        for f, g in self._groups:  # one row group in memory at a time
            yield from are_filled(within(self._files[f].read_row_group(g, columns=[column]).column(0), members))

    def _file(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _rows(self, group: int, column: str, members: Sequence[str], index: int) -> pa.Array:
        with self._lock:
            key = (group, column)
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            f, g = self._groups[group]
            try:
                rows = self._files[f].read_row_group(g, columns=[column]).column(0)
                rows = within(rows, members).combine_chunks()
            except (pa.ArrowInvalid, OSError) as error:
                raise Unreadable(self.name(index), f"its row group is damaged ({error})") from error
            self._held[key] = rows
            while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            return rows
