"""Images in Parquet files of the Hugging Face layout, read by row group."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Shaped
from torch import Tensor

from .columns import Columns, TableSchema, number_classes, split_columns
from .decode import Unreadable, decode, read_header, to_channels

_HELD_BYTES = 1 << 30  # of encoded row groups kept in memory
_LOOKED_AT = 16  # rows that tell which columns hold images
_SHOWN = 80  # characters of a name in messages


class ParquetSource:
    """The images of one or several Parquet files, in order; `name` is file[row].

    The image column is a struct {bytes, path}, plain bytes or, where it is named, paths beside the file; the label
    column whole numbers, words or truth values. `columns` names them; else the image column is the only one that holds
    images, the label column the first of a usual name. Class names come from the schema metadata that the `datasets`
    library writes, or are the values themselves. Row groups are read on demand, and the latest are cached, up to 1 GB
    of encoded images, so a big file need not fit in memory. Threads may share one; a process that receives it opens the
    files anew. Raises `ValueError` where a file is damaged, has no image column or, unless `as_recorded`, several.
    """

    def __init__(
        self,
        address: str,
        paths: list[Path],
        channels: int,
        passed_over: Mapping[str, int] | None = None,
        columns: Columns | None = None,
        *,
        as_recorded: bool = False,
    ) -> None:
        self.address, self.paths, self.channels, self.passed_over = address, paths, channels, passed_over or {}
        self.named_columns = columns or Columns()
        self._resolved = [path.resolve() for path in paths]
        self._open()
        schema = self._files[0].schema_arrow
        for path, file in zip(paths, self._files, strict=True):
            if file.schema_arrow.names != schema.names:
                raise ValueError(f"{path} has other columns than {paths[0]}; give files of one dataset")
        sizes = [file.metadata.num_rows for file in self._files]
        self._starts = [0, *accumulate(sizes)]  # the first row of each file
        self._groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.num_row_groups)]
        group_sizes = (self._files[f].metadata.row_group(g).num_rows for f, g in self._groups)
        self._ends: list[int] = list(accumulate(group_sizes))  # the row after the last, for each row group
        if not sum(sizes):
            raise ValueError(f"{address!r} has no rows")
        self._schema = TableSchema(split_columns(address)[0], schema)
        self._image = self._choose_image(as_recorded)
        named = self.named_columns.label
        self._label = self._schema.label() if named is None else self._schema.named_label(named)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by what they hold."""
        return {"images": self._image} | ({} if self.labels is None else {"labels": self._label or ""})

    def _choose_image(self, as_recorded: bool) -> str:
        if self.named_columns.image is not None:
            return self._schema.named_image(self.named_columns.image)
        columns = self._schema.images()
        if len(columns) == 1 or as_recorded:  # of several, runs of release 0.1 read the first
            return columns[0]
        holding = [name for name in columns if self._holds_images(name)] or columns
        self._schema.refuse_several(holding)
        return holding[0]

    def _holds_images(self, column: str) -> bool:
        """Whether the first value of a column is an encoded image."""
        for batch in self._files[0].iter_batches(_LOOKED_AT, columns=[column]):
            for cell in self._within(batch.column(0), column):
                try:
                    read_header(self._bytes_of(cell.as_py(), 0))
                except Unreadable:
                    continue
                return True
            break
        return False

    def _within(self, values: Any, column: str) -> Any:
        """The values of a member of a struct, from those of the struct."""
        members = self._schema.members[column]
        return pc.struct_field(values, members) if members else values

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._files = []
        for path in self.paths:
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
        return self._ends[-1]

    def name(self, index: int) -> str:
        f = self._file(index)
        return f"{self.paths[f].name}[{index - self._starts[f]}]"

    def location(self, index: int) -> str:
        """The path of the file, and the row in it."""
        f = self._file(index)
        return f"{self._resolved[f]}[{index - self._starts[f]}]"

    def encoded(self, index: int) -> bytes:
        """The bytes in the row, or of the file that it names."""
        group, row = self._locate(index)
        return self._bytes_of(self._rows(group, index)[row].as_py(), index)

    def _bytes_of(self, cell: Any, index: int) -> bytes:
        """The bytes in a cell of a row, or of the file beside the table that it names."""
        path = cell
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if isinstance(cell, bytes) and cell:
            return cell
        if not isinstance(path, str) or not path:
            raise Unreadable(self.name(index), "the row is empty (null)")
        try:
            return (self.paths[self._file(index)].parent / path).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Unreadable(self.name(index), f"names the file {path[:_SHOWN]!r}: {reason}") from error

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        name = self.name(index)
        return to_channels(decode(self.encoded(index), name), self.channels, name)

    def _locate(self, index: int) -> tuple[int, int]:
        """Row group and row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = bisect.bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _file(self, index: int) -> int:
        return self._groups[self._locate(index)[0]][0]

    def _rows(self, group: int, index: int) -> pa.Array:
        with self._lock:
            if group in self._held:
                self._held.move_to_end(group)
                return self._held[group]
            f, g = self._groups[group]
            try:
                rows = self._files[f].read_row_group(g, columns=[self._image]).column(0)
                rows = self._within(rows, self._image).combine_chunks()
            except (pa.ArrowInvalid, OSError) as error:
                raise Unreadable(self.name(index), f"its row group is damaged ({error})") from error
            self._held[group] = rows
            while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            return rows

    @property
    def labels(self) -> list[int] | None:
        """The class of each image, -1 for none; read when first needed, since training needs none."""
        return self._labelled[0]

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; ids of a taxonomy, words and truth values are their own names."""
        return self._labelled[1]

    @property
    def unlabelled(self) -> str:
        """Why there are no labels, and what to do, in the words of a message."""
        flags = [name for name in self._schema.numbers() if self._is_flag(name)] if self._label is None else []
        return self._schema.why_unlabelled(self._label, flags)

    @cached_property
    def _labelled(self) -> tuple[list[int] | None, list[str] | None]:
        if self._label is None:
            return None, None
        values, names = list(self._values(self._label)), self._schema.feature(self._label).get("names")
        try:
            return number_classes(values, names, is_named=self.named_columns.label is not None)
        except ValueError as error:
            raise ValueError(f"the column {self._label} of {self.address} gives no classes: {error}") from error

    def _values(self, column: str) -> Iterator[Any]:
        for file in self._files:
            yield from self._within(file.read(columns=[column]).column(0), column).to_pylist()

    def _is_flag(self, column: str) -> bool:
        """Whether a column holds 0 and 1, or truth values, alone."""
        values = set(self._values(column)) - {None}
        return bool(values) and values <= {0, 1}
