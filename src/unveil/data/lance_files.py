"""Rows of Lance data sets, `FOLDER.lance`, which are read one by one from anywhere in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from .decode import Unreadable
from .extras import optional
from .table import are_filled, top_of, within

_EXTRA = "a Lance data set is read with pylance: pip install 'unveil[lance]'"
_BLOB = b"lance-encoding:blob"  # of a column whose values are kept apart from the table


class LanceRows:
    """The rows of the latest version of a Lance data set, in its order; `name` is NAME.lance[row].

    Raises ValueError for a folder that holds none.
    """

    def __init__(self, path: Path) -> None:
        lance = optional("lance", _EXTRA)
        self.path = path
        try:
            self._table = lance.dataset(str(path))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is no Lance data set, or a damaged one: {str(error).split(', /')[0]}") from error
        self._blobs = {column.name for column in self._table.schema if _is_blob(column)}
        self._count: int = self._table.count_rows()

    @cached_property
    def schema(self) -> pa.Schema:
        stored: pa.Schema = self._table.schema
        columns = [pa.field(c.name, pa.large_binary()) if c.name in self._blobs else c for c in stored]
        return pa.schema(columns, stored.metadata)

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"{self.path.name}[{index}]"

    def location(self, index: int) -> str:
        return f"{self.path.resolve()}[{index}]"

    def folders(self, index: int) -> list[Path]:
        return [self.path.parent]

    def cell(self, column: str, members: Sequence[str], index: int) -> Any:
        top = top_of(column, members)
        try:
            if top in self._blobs:
                (blob,) = self._table.take_blobs(top, indices=[index])
                return blob.readall()
            return within(self._table.take([index], columns=[top]).column(0), members)[0].as_py()
        except (OSError, ValueError) as error:
            raise Unreadable(self.name(index), f"the data set is damaged ({error})") from error

    def values(self, column: str, members: Sequence[str]) -> Iterator[Any]:
        top = top_of(column, members)
        for batch in self._table.to_batches(columns=[top]):
            yield from within(batch.column(0), members).to_pylist()

    def filled(self, column: str, members: Sequence[str]) -> Iterator[bool]:
        top = top_of(column, members)
        for batch in self._table.to_batches(columns=[top]):
            yield from are_filled(within(batch.column(0), members))


def _is_blob(column: pa.Field) -> bool:
    is_extension = getattr(column.type, "extension_name", "").startswith("lance.blob")
    return is_extension or (column.metadata or {}).get(_BLOB) == b"true"
