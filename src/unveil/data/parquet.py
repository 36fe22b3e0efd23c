"""Images in Parquet files of the Hugging Face layout, read by row group."""

from __future__ import annotations

import bisect
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped
from torch import Tensor

from .decode import Unreadable, decode, to_channels

_HELD_BYTES = 1 << 30  # of encoded row groups kept in memory
_FEW = 2  # classes that may have an image each
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "coarse_label")


class ParquetSource:
    """The images of one or several Parquet files, in order; `name` is file[row].

    The image column is a struct {bytes, path} (or plain bytes), the label column whole numbers, words or truth values;
    class names come from the schema metadata that the `datasets` library writes, or are the values themselves. Row
    groups are read on demand, and the latest are cached, up to 1 GB of encoded images, so a big file need not fit in
    memory. Threads may share one; a process that receives it opens the files anew. Raises `ValueError` where a file is
    damaged or has no image column.
    """

    def __init__(
        self, address: str, paths: list[Path], channels: int, passed_over: Mapping[str, int] | None = None
    ) -> None:
        self.address, self.paths, self.channels, self.passed_over = address, paths, channels, passed_over or {}
        self._resolved = [path.resolve() for path in paths]
        self._open()
        schema = self._files[0].schema_arrow
        for path, file in zip(paths, self._files, strict=True):
            if file.schema_arrow.names != schema.names:
                raise ValueError(f"{path} has other columns than {paths[0]}; give files of one dataset")
        features = _features(schema)
        self._column = _image_column(schema, features, address)
        sizes = [file.metadata.num_rows for file in self._files]
        self._starts = [0, *accumulate(sizes)]  # the first row of each file
        self._groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.num_row_groups)]
        group_sizes = (self._files[f].metadata.row_group(g).num_rows for f, g in self._groups)
        self._ends: list[int] = list(accumulate(group_sizes))  # the row after the last, for each row group
        if not sum(sizes):
            raise ValueError(f"{address!r} has no rows")
        self._label, self._features = _label_column(schema, features), features
        self.columns = {column.name: str(column.type) for column in schema}

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
        cell = self._rows(group, index)[row].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or self._beside(index, cell.get("path"))
        if cell is None:
            raise Unreadable(self.name(index), "the row is empty (null)")
        return bytes(cell)

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
                rows = self._files[f].read_row_group(g, columns=[self._column])[self._column].combine_chunks()
            except (pa.ArrowInvalid, OSError) as error:
                raise Unreadable(self.name(index), f"its row group is damaged ({error})") from error
            self._held[group] = rows
            while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            return rows

    def _beside(self, index: int, path: str | None) -> bytes | None:
        """The file that a row names instead of holding its bytes, looked for beside the Parquet file."""
        if not path:
            return None
        try:
            return (self.paths[self._file(index)].parent / path).read_bytes()
        except OSError as error:
            raise Unreadable(self.name(index), f"names the file {path!r}: {error.strerror}") from error

    @property
    def labels(self) -> list[int] | None:
        """The class of each image, -1 for none; read when first needed, since training needs none."""
        return self._labelled[0]

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; ids of a taxonomy, words and truth values are their own names."""
        return self._labelled[1]

    @cached_property
    def _labelled(self) -> tuple[list[int] | None, list[str] | None]:
        if self._label is None:
            return None, None
        columns = (file.read(columns=[self._label])[self._label].to_pylist() for file in self._files)
        values: list[Any] = list(chain.from_iterable(columns))
        names = self._features.get(self._label, {}).get("names")
        if names or all(isinstance(v, int) and not isinstance(v, bool) and v < 0 for v in values if v is not None):
            labels = [-1 if value is None else int(value) for value in values]  # -1 is the layout's way of saying none
            return (labels, names) if max(labels, default=-1) >= 0 else (None, None)
        known = sorted({value for value in values if value is not None and value != -1})
        if len(known) > _FEW and len(known) == sum(value is not None for value in values):
            return None, None  # another value in every row: times or numbers of rows, no classes
        numbers = {value: number for number, value in enumerate(known)}
        own = None if known == list(range(len(known))) and not isinstance(known[0], bool) else list(map(str, known))
        return [numbers.get(value, -1) for value in values], own


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Column -> feature, as the `datasets` library describes them in the schema; {} where it did not."""
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features


def _image_column(schema: pa.Schema, features: dict[str, Any], address: str) -> str:
    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    columns: list[str] = [column.name for column in schema if is_image(column.type)]
    if not columns:
        kinds = ", ".join(f"{column.name} ({column.type})" for column in schema)
        raise ValueError(f"{address!r} has no column of images, a struct of bytes and path; its columns: {kinds}")
    declared = [name for name in columns if features.get(name, {}).get("_type") == "Image"]
    return (declared or columns)[0]


def _label_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    """The column of one class for each image: whole numbers, words or truth values, under a usual name or declared."""
    single = [column.name for column in schema if _is_class(column.type)]
    declared = [name for name in single if features.get(name, {}).get("_type") == "ClassLabel"]
    known = [name for names in (declared, single) for name in _LABEL_NAMES if name in names]
    return next(iter([*known, *declared]), None)


def _is_class(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    return any(test(kind) for test in tests)
