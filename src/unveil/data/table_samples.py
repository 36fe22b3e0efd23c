"""Samples of several maps in the rows of a table: each modality a column of encoded maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..runs.console import suggest
from .columns import is_image
from .decode import Unreadable
from .modality_config import BUILT_IN, RGB, Declared
from .read_map import Map, read_map
from .source_bases import DeclaredSamples
from .sources import open_source
from .table import TableSource


def open_table_samples(
    address: str, declared: tuple[Declared, ...], besides: Sequence[Declared] = (), source: TableSource | None = None
) -> TableSamples:
    """The samples of a table with the declared modalities, those of all its rows; of one that is open, its `source`.

    A modality is the column of its name, or the one that `files` declares; rgb also the one that `--image-column` names
    or the only column of images that is no other modality: none of those `declared` and `besides`, and no built-in one.
    A row without a map (null) lacks it. Raises ValueError for a modality without a column.
    """
    opened = source or open_source(address, 3, as_rows=True)
    assert isinstance(opened, TableSource)
    source = opened
    columns: dict[str, str] = {}
    for d in declared:
        named = [name for name in (d.folder, d.name) if name in source.schema.kinds]
        columns[d.name] = source.schema.named_image(named[0]) if named else ""
    for d in declared:
        if not columns[d.name]:
            others = {name for other in (*besides, *BUILT_IN.values()) for name in (other.folder, other.name)}
            columns[d.name] = _remaining(source, d, {*columns.values(), *others})
        if d.validity:
            raise ValueError(
                f"modality {d.name!r} declares files of its valid pixels ({d.validity}), which a table does not hold;"
                " declare the number that means no data, nodata = [0], or void"
            )
    return TableSamples(address, source, declared, columns)


def _remaining(source: TableSource, declared: Declared, others: Collection[str]) -> str:
    """The column of a modality that none is named after: that of the pictures."""
    if declared.name == RGB.name:
        if source.named_columns.image is not None:
            return source.schema.named_image(source.named_columns.image)
        kinds = source.schema.kinds.items()
        left = [name for name, kind in kinds if is_image(kind) and name not in others]
        if len(left) == 1:
            return left[0]
        if left:
            source.schema.refuse_several(left)
    hint = suggest(declared.name, source.schema.kinds, "name one of them.")
    raise ValueError(
        f"{source.address!r} has no column of {declared.name!r}; {hint} Its columns: {source.schema.described}. Declare"
        " the one that holds it in a .toml: files = 'COLUMN'"
    )


@dataclass(frozen=True)
class TableSamples(DeclaredSamples):
    """Rows of a table, each a sample whose maps are in `columns` by modality."""

    address: str
    table: TableSource
    declared: tuple[Declared, ...]
    maps: Mapping[str, str]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> Sequence[int] | None:
        return self.table.labels

    @property
    def classes(self) -> list[str] | None:
        return self.table.classes

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by what they hold."""
        return dict(self.maps)

    def name(self, index: int) -> str:
        return self.table.name(index)

    def location(self, index: int) -> str:
        return self.table.location(index)

    @cached_property
    def _has(self) -> list[tuple[bool, ...]]:
        columns = (self.table.filled(self.maps[d.name]) for d in self.declared)
        return list(zip(*columns, strict=True))

    def has(self, index: int) -> tuple[bool, ...]:
        return self._has[index]

    def complete(self) -> frozenset[str]:
        """Nothing is known of the maps before they are read, for a cell may hold any format."""
        return frozenset()

    def content(self, index: int) -> bytes:
        """The bytes of the sample's first map."""
        return self.table.bytes_of(self.maps[self._present(index)[0].name], index)

    def _map(self, index: int, declared: Declared) -> Map:
        name = f"{self.name(index)}.{self.maps[declared.name]}"
        try:
            return read_map(self.table.bytes_of(self.maps[declared.name], index), declared, name)
        except Unreadable as error:
            raise Unreadable(name, error.reason) from error
