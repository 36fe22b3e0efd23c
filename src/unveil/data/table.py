"""Images in the rows of a table in the Hugging Face image layout, whatever file or library holds the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from ..runs.console import user_path
from .columns import Columns, TableSchema, number_classes, split_columns
from .decode import Unreadable, read_header
from .regular_files import path_in, read_bytes
from .source_bases import LabelledImages

_LOOKED_AT = 16  # rows that tell which columns hold images
_SHOWN = 80  # characters of a name in messages


@runtime_checkable
class Rows(Protocol):
    """The rows of a table, read in any order and by several threads. They may be sent to another process.

    A column is given by its name, `sample.image`, and the names of members below the column of the file, here `image`.
    `cell` is its value in a row as Python has it and may raise `Unreadable`; `values` are all, and `filled` says which
    are not null, neither with many in memory at once. `name` is that of a row in messages, `location` the same wherever
    the table is opened from. Files that a row names lie in `folders`, and their names start from the first.
    """

    @property
    def schema(self) -> pa.Schema: ...
    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def location(self, index: int) -> str: ...
    def cell(self, column: str, members: Sequence[str], index: int) -> Any: ...
    def values(self, column: str, members: Sequence[str]) -> Iterator[Any]: ...
    def filled(self, column: str, members: Sequence[str]) -> Iterator[bool]: ...
    def folders(self, index: int) -> list[Path]: ...


class TableSource(LabelledImages):
    """The images of a table, in the order of its rows.

    The image column is a struct {bytes, path}, plain bytes or, where it is named, paths beside the file; the label
    column whole numbers, words or truth values. `columns` names them; else the image column is the only one that holds
    images, the label column the first of a usual name. Class names come from the schema metadata that the `datasets`
    library writes, or are the values themselves. Threads may share one. Raises `ValueError` where there is no image
    column or, unless `as_recorded`, several; with `as_rows` none is chosen.
    """

    channels: int

    def __init__(
        self,
        address: str,
        rows: Rows,
        channels: int,
        passed_over: Mapping[str, int] | None = None,
        columns: Columns | None = None,
        *,
        as_recorded: bool = False,
        as_rows: bool = False,
    ) -> None:
        self.address, self.rows, self.channels, self.passed_over = address, rows, channels, passed_over or {}
        self.named_columns = columns or Columns()
        if not len(rows):
            raise ValueError(f"{address!r} has no rows")
        self.schema = TableSchema(split_columns(address)[0], rows.schema)
        self._image = "" if as_rows else self._choose_image(as_recorded)
        named = self.named_columns.label
        self._label = self.schema.label() if named is None else self.schema.named_label(named)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by what they hold."""
        return {"images": self._image} | ({} if self.labels is None else {"labels": self._label or ""})

    def _choose_image(self, as_recorded: bool) -> str:
        if self.named_columns.image is not None:
            return self.schema.named_image(self.named_columns.image)
        columns = self.schema.images()
        if len(columns) == 1 or as_recorded:  # of several, runs of release 0.1 read the first
            return columns[0]
        holding = [name for name in columns if self._holds_images(name)] or columns
        self.schema.refuse_several(holding)
        return holding[0]

    def _holds_images(self, column: str) -> bool:
        """Whether the first value of a column is an encoded image."""
        for index in range(min(_LOOKED_AT, len(self))):
            try:
                read_header(self.bytes_of(column, index))
            except Unreadable:
                continue
            return True
        return False

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.rows.name(index)

    def location(self, index: int) -> str:
        """Where the table lies, and the row in it."""
        return self.rows.location(index)

    def encoded(self, index: int) -> bytes:
        """The bytes in the row, or of the file that it names."""
        return self.bytes_of(self._image, index)

    def bytes_of(self, column: str, index: int) -> bytes:
        """The bytes in a cell, or of the file beside the table that it names. Raises `Unreadable`."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        cell: Any = self.rows.cell(column, self.schema.members[column], index)
        path: Any = cell
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if isinstance(cell, bytes) and cell:
            return cell
        if not isinstance(path, str) or not path:
            raise Unreadable(self.name(index), "the row is empty (null)")
        try:
            return read_bytes(path_in(self._folders(index), path), self.name(index))
        except (Unreadable, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unreadable(self.name(index), f"names the file {path[:_SHOWN]!r}: {reason}") from error

    def _folders(self, index: int) -> list[Path]:
        """Where a row names files from, and the folder that the user has given where that lies in it."""
        folders, given = self.rows.folders(index), user_path(split_columns(self.address)[0])
        return [*folders, given] if given in folders[0].parents else folders

    def filled(self, column: str) -> list[bool]:
        """Whether each row has a value in a column."""
        return list(self.rows.filled(column, self.schema.members[column]))

    @property
    def unlabelled(self) -> str:
        """Why there are no labels, and what to do, in the words of a message."""
        flags = [name for name in self.schema.numbers() if self._is_flag(name)] if self._label is None else []
        return self.schema.why_unlabelled(self._label, flags)

    @cached_property
    def _labelled(self) -> tuple[list[int] | None, list[str] | None]:
        if self._label is None:
            return None, None
        values, names = list(self._values(self._label)), self.schema.feature(self._label).get("names")
        try:
            return number_classes(values, names, is_named=self.named_columns.label is not None)
        except ValueError as error:
            raise ValueError(f"the column {self._label} of {self.address} gives no classes: {error}") from error

    def _values(self, column: str) -> Iterator[Any]:
        return self.rows.values(column, self.schema.members[column])

    def _is_flag(self, column: str) -> bool:
        """Whether a column holds 0 and 1, or truth values, alone."""
        values = set(self._values(column)) - {None}
        return bool(values) and values <= {0, 1}


def are_filled(values: Any) -> list[bool]:
    """Whether each value is there: not null, and of a struct of bytes and path not without both."""
    there = pc.is_valid(values)
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        fields = [values.type.field(i).name for i in range(values.type.num_fields)]
        members = [pc.is_valid(pc.struct_field(values, [name])) for name in ("bytes", "path") if name in fields]
        there = pc.and_(there, members[0] if len(members) == 1 else pc.or_(*members))
    filled: list[bool] = there.to_pylist()
    return filled


def top_of(column: str, members: Sequence[str]) -> str:
    """The column of the file that a name such as `sample.image` is below."""
    return column.removesuffix("." + ".".join(members)) if members else column


def within(values: Any, members: Sequence[str]) -> Any:
    """The values of a member of a struct, from those of the struct."""
    return pc.struct_field(values, list(members)) if members else values
