"""Which columns of a table hold images and classes: named with the address, or told from types, names and contents."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from ..runs.console import suggest

if TYPE_CHECKING:  # an address is read without it
    import pyarrow as pa

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "coarse_label")  # the first that there is counts
_FEW = 2  # classes that may have an image each
_IMAGES = "images are a struct of bytes and path, encoded bytes, or names of files beside the table"
_CLASSES = "classes are whole numbers, words or truth values, one for each image"
_SEVERAL = (
    "several labels an image are not supported: write one class of each image to a column and give --label-column"
    " NAME, or fit a classifier of several labels on the features that `unveil embed` writes"
)

GIVEN = "python"  # the first word of the address of data that were given as Python objects


@dataclass(frozen=True)
class Columns:
    """The columns that an address names; None leaves the choice to the data."""

    image: str | None = None
    label: str | None = None

    @property
    def flags(self) -> str:
        """The options that name them, as they are typed; empty where none is named."""
        named = {"--image-column": self.image, "--label-column": self.label}
        return " ".join(f"{flag} {name}" for flag, name in named.items() if name is not None)


def split_columns(address: str) -> tuple[str, Columns]:
    """An address without the columns that it names, `photos.parquet:image=left,label=species`, and these."""
    match = re.fullmatch(r"(?s)(.*?):((?:image|label)=.*)", address)
    if match is None:
        return address, Columns()
    named = (words.partition("=") for words in re.split(r",(?=(?:image|label)=)", match[2]))
    return match[1], Columns(**{name: column for name, _, column in named})


@overload
def with_columns(address: str, image: str | None = None, label: str | None = None) -> str: ...
@overload
def with_columns(address: None, image: str | None = None, label: str | None = None) -> None: ...
@overload
def with_columns(address: str | None, image: str | None = None, label: str | None = None) -> str | None: ...
def with_columns(address: str | None, image: str | None = None, label: str | None = None) -> str | None:
    """The address with the columns to read, which replace those that it names.

    Raises ValueError for columns without an address.
    """
    if image is None and label is None:
        return address
    if address is None:
        raise ValueError(f"{Columns(image, label).flags} names a column of --data; give both, or neither")
    place, own = split_columns(address)
    named = {"image": own.image if image is None else image, "label": own.label if label is None else label}
    return f"{place}:" + ",".join(f"{name}={column}" for name, column in named.items() if column is not None)


class TableSchema:
    """The columns of a table by name, members of structs as `sample.image`, and what `datasets` says of them.

    `kinds` are their types. A struct of bytes and path is one column.
    """

    def __init__(self, address: str, schema: pa.Schema) -> None:
        self.address = address
        self.kinds: dict[str, pa.DataType] = {}
        self.members: dict[str, list[str]] = {}  # below the column of the file
        for column in schema:
            self._add(column.name, column.type, [])
        try:
            features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, TypeError, ValueError):
            features = {}
        self._features: dict[str, Any] = features

    def _add(self, name: str, kind: pa.DataType, members: list[str]) -> None:
        import pyarrow as pa

        if not pa.types.is_struct(kind) or is_image(kind):
            self.kinds.setdefault(name, kind)
            self.members.setdefault(name, members)
            return
        for member in (kind.field(i) for i in range(kind.num_fields)):
            self._add(f"{name}.{member.name}", member.type, [*members, member.name])

    @property
    def described(self) -> str:
        """All columns as a message lists them, with the types of their values."""
        return self._listed(self.kinds)

    def _listed(self, names: Iterable[str]) -> str:
        kinds = ((name, self.kinds[name]) for name in names)
        return ", ".join(f"{name} ({'struct of bytes' if _any(kind, 'struct') else kind})" for name, kind in kinds)

    def feature(self, name: str) -> dict[str, Any]:
        """What the `datasets` library says of a column; {} where it says nothing."""
        members = self.members[name]
        top = name.removesuffix("." + ".".join(members)) if members else name
        feature: Any = self._features
        for column in (top, *members):
            feature = feature.get(column, {}) if isinstance(feature, dict) else {}
        return feature if isinstance(feature, dict) else {}

    def _declared(self, kind: str) -> list[str]:
        return [name for name in self.kinds if self.feature(name).get("_type") == kind]

    def _check_there(self, name: str, flag: str) -> pa.DataType:
        if name not in self.kinds:
            near = suggest(name, self.kinds, "name one of them.")
            raise ValueError(f"{self.address} has no column {name!r} for {flag}; {near} Its columns: {self.described}")
        return self.kinds[name]

    def named_image(self, name: str) -> str:
        """The column of images that the user names. Raises ValueError where it is not there, or can hold none."""
        kind = self._check_there(name, "--image-column")
        if not is_image(kind) and not _is_text(kind):
            raise ValueError(f"--image-column {name} of {self.address} holds {kind}; {_IMAGES}")
        return name

    def images(self) -> list[str]:
        """The columns that may hold images, those that are declared to first. Raises ValueError where there is none."""
        columns = [name for name, kind in self.kinds.items() if is_image(kind) and not _is_digest(kind)]
        if not columns:
            raise ValueError(
                f"{self.address!r} has no column of images, a struct of bytes and path; its columns: {self.described}."
                " Where one holds names of files, give --image-column NAME"
            )
        declared = self._declared("Image")
        return sorted(columns, key=lambda name: name not in declared)

    def refuse_several(self, columns: Collection[str]) -> None:
        """Raise ValueError where several columns hold images."""
        if len(columns) > 1:
            raise ValueError(
                f"{self.address!r} has {len(columns)} columns of images, {self._listed(columns)}: which are the data?"
                " Give " + " or ".join(f"--image-column {name}" for name in columns)
            )

    def named_label(self, name: str) -> str:
        """The column of classes that the user names. Raises ValueError where it is not there, or can hold none."""
        kind = self._check_there(name, "--label-column")
        if _is_list(kind):
            raise ValueError(
                f"--label-column {name} of {self.address} holds several values an image ({kind}): {_SEVERAL}"
            )
        if not _is_class(kind) and not _is_binary(kind) and not _is_floating(kind):
            raise ValueError(f"--label-column {name} of {self.address} holds {kind}; {_CLASSES}")
        return name

    def label(self) -> str | None:
        """The column of classes: of a usual name, those declared as classes first; else the only declared one."""
        single = [name for name, kind in self.kinds.items() if _is_class(kind)]
        declared = [name for name in self._declared("ClassLabel") if name in single]
        usual = [name for names in (declared, single) for name in LABEL_NAMES if name in names]
        return usual[0] if usual else declared[0] if len(declared) == 1 else None

    def numbers(self) -> list[str]:
        """The columns of numbers and of truth values."""
        return [name for name, kind in self.kinds.items() if _any(kind, "integer", "boolean", "floating")]

    def why_unlabelled(self, label: str | None, flags: Iterable[str]) -> str:
        """Why no column gives each image a class, and what to do; `label` is one whose values are none, `flags` are
        the columns of nothing but 0 and 1.
        """
        several = next((name for name in LABEL_NAMES if _is_list(self.kinds.get(name))), None)
        flags = list(flags)
        if several is not None:
            return f"its column {several} holds several values an image ({self.kinds[several]}), and {_SEVERAL}"
        if label is not None:
            return (
                f"the values of its column {label} are no classes: all are missing, each row has another one, as with"
                " times, some are numbers and some words, or they are several in one text, as 'cat|dog', and"
                f" {_SEVERAL}. Its columns: {self.described}"
            )
        if len(flags) > 1:
            return (
                f"its columns {', '.join(flags)} hold 0 or 1, and {_SEVERAL}; --label-column {flags[0]} measures this"
                " one alone"
            )
        near = [name for name, kind in self.kinds.items() if _is_class(kind)]
        near = [*self._declared("ClassLabel"), *near, *(n for n, kind in self.kinds.items() if _is_floating(kind))]
        example = f", as in --label-column {near[0]}" if near else ""
        return (
            f"of its columns {self.described} none is named {', '.join(LABEL_NAMES)} and holds classes; {_CLASSES}:"
            f" give the column that has them, --label-column NAME{example}"
        )


def number_classes(
    values: list[Any], names: list[str] | None, *, is_named: bool
) -> tuple[list[int] | None, list[str] | None]:
    """The class of each value from 0, -1 for none, and the names of classes that are not numbered so already.

    `names` are those of values that are numbers of classes. Of a column that the user has not named, values that
    differ in every row are no classes, nor are texts that list several. Raises ValueError for values of several kinds
    and for measured numbers.
    """
    values = [_class_value(value) for value in values]
    if names and any(isinstance(value, int) and value >= len(names) for value in values):
        names = None  # they are of other classes
    if names or all(isinstance(v, int) and not isinstance(v, bool) and v < 0 for v in values if v is not None):
        labels = [-1 if value is None else int(value) for value in values]  # -1 is the layout's way of saying none
        return (labels, names) if max(labels, default=-1) >= 0 else (None, None)
    known: Any = {value for value in values if value is not None and value != -1}
    if len({type(value) for value in known}) > 1:  # of files that were written apart
        if not is_named:
            return None, None
        raise ValueError("it holds numbers, words or truth values mixed; write all as words")
    known = sorted(known)
    are_times = len(known) > _FEW and len(known) == sum(value is not None for value in values)
    if not is_named and (are_times or _lists_several(known)):
        return None, None
    numbers = {value: number for number, value in enumerate(known)}
    own = None if known == list(range(len(known))) and not isinstance(known[0], bool) else list(map(str, known))
    return [numbers.get(value, -1) for value in values], own


def _lists_several(words: list[Any]) -> bool:
    """Whether texts are lists of labels: each part of one, as of `cat|dog`, is also in another."""
    if not all(isinstance(word, str) for word in words):
        return False
    for mark in "|;,":
        parts = [{label.strip() for label in word.split(mark)} for word in words]
        counts = Counter(label for word in parts for label in word)
        listed = [word for word in parts if len(word) > 1]
        if listed and all(counts[label] > 1 for word in listed for label in word):
            return True
    return False


def _class_value(value: Any) -> Any:
    """A value as one of a class: whole floats as whole numbers, bytes as text, NaN as none."""
    if isinstance(value, float):
        if value != value:
            return None
        if not value.is_integer():
            raise ValueError(f"it holds measured numbers, such as {value:g}; {_CLASSES}")
        return int(value)
    return value.decode() if isinstance(value, bytes) else value


def is_image(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images: bytes, or a struct with a member `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return _is_binary(kind)


def _any(kind: pa.DataType, *names: str) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _is_binary(kind: pa.DataType) -> bool:
    return _any(kind, "binary", "large_binary", "binary_view", "fixed_size_binary")


def _is_digest(kind: pa.DataType) -> bool:
    """Whether its values are too short for images, as identifiers and checksums are."""
    return _any(kind, "fixed_size_binary") and kind.byte_width <= 64


def _is_text(kind: pa.DataType) -> bool:
    return _any(kind, "string", "large_string", "string_view")


def _is_class(kind: pa.DataType) -> bool:
    return _is_text(kind) or _any(kind, "integer", "boolean")


def _is_floating(kind: pa.DataType) -> bool:
    return _any(kind, "floating")


def _is_list(kind: pa.DataType | None) -> bool:
    return kind is not None and _any(
        kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view", "map"
    )
