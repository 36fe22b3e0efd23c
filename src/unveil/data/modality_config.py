"""Modalities by declaration: what a map means, where its files lie and how they are read; in Python or in TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..modeling import types as records
from ..modeling.types import Modality
from ..runs.console import suggest, user_path
from ..runs.regular_files import read_text, stays_below

_HINTS = get_type_hints(Modality)


def _need(holds: bool, name: str, key: str, came: object, needed: str) -> None:
    if not holds:
        raise ValueError(f"modality {name!r}: {key} = {came!r}: {needed} is needed")


@dataclass(frozen=True)
class Declared:
    """A modality and how its files are read.

    `files` is the folder of its files below that of the data (by default its name), `suffix` the end of their names
    that is no part of the stem (by default the extension), `key` the array of an `.npz`, and `validity` a folder of
    masks, one per stem, 0 where the map is not valid.

    Numbers that are stored as integers become `scale` x number + `offset`, in `unit`; without a scale 8 and 16 bits
    become [0, 1]. Floats are taken to be in the unit already. `nodata` are the stored numbers that mean no data,
    `void` is the class id that does. `window` (centre, width) is applied to DICOM in place of the file's own.
    `classes` names the ids. With `measured`, mean and std, or the number of classes, are still to come from the data.
    """

    modality: Modality
    files: str = ""
    suffix: str = ""
    key: str = ""
    validity: str = ""
    scale: float | None = None
    offset: float = 0.0
    unit: str = ""
    nodata: tuple[float, ...] = ()
    void: int | None = None
    window: tuple[float, float] | None = None
    classes: tuple[str, ...] = ()
    measured: bool = False

    def __post_init__(self) -> None:
        m = self.modality
        _need(m.stride >= 1, m.name, "stride", m.stride, "a whole number of pixels, 1 or more")
        _need(min(m.std) > 0, m.name, "std", m.std, "a number above 0 for each channel")
        _need(m.weight > 0, m.name, "weight", m.weight, "a number above 0")
        for key in ("files", "validity"):
            is_inside = not (path := getattr(self, key)) or stays_below(path)
            _need(is_inside, m.name, key, path, "a folder inside that of the data, without ..,")
        _need(self.scale != 0, m.name, "scale", self.scale, "a number other than 0")
        _need(self.window is None or self.window[1] > 0, m.name, "window", self.window, "centre and width above 0")
        _need(m.kind == "categorical" or self.void is None, m.name, "void", self.void, "kind = 'categorical'")
        _need(len(self.classes) in (0, m.num_classes), m.name, "classes", self.classes, "a name for each class")

    @property
    def name(self) -> str:
        return self.modality.name

    @property
    def is_categorical(self) -> bool:
        """Whether its map holds class ids."""
        return self.modality.kind == "categorical"

    @property
    def folder(self) -> str:
        """Where its files are, below the folder of the data."""
        return self.files or self.name

    def settled(self, mean: Sequence[float], std: Sequence[float], num_classes: int) -> Declared:
        """The same with what the data say, where that was left to them."""
        if not self.measured:
            return self
        if self.is_categorical:
            return replace(self, modality=replace(self.modality, num_classes=max(num_classes, 1)), measured=False)
        return replace(self, modality=replace(self.modality, mean=tuple(mean), std=tuple(std)), measured=False)


def declared_from(stored: Mapping[str, Any]) -> Declared:
    """The inverse of `asdict`: a declaration from its JSON object."""
    own = {name: _tuples(stored[name]) for name in (f.name for f in fields(Declared)) if name in stored}
    return Declared(**{**own, "modality": modality_from(stored["modality"])})


def modality_from(stored: Mapping[str, Any]) -> Modality:
    """A modality as JSON holds it; fields that it does not have yet keep their defaults."""
    return Modality(**{f.name: _tuples(stored[f.name]) for f in fields(Modality) if f.name in stored})


RGB = Declared(records.RGB, measured=True)
DEPTH = Declared(records.DEPTH, scale=1e-3, unit="m", nodata=(0.0,))
SEMSEG = Declared(records.SEMSEG, void=255, measured=True)  # void as in most public label images
BUILT_IN = {d.name: d for d in (RGB, DEPTH, SEMSEG)}


def declare(words: Sequence[str]) -> tuple[Declared, ...]:
    """The modalities that words name: built-in ones (rgb, depth, semseg) and those of TOML files, in this order.

    Raises ValueError, with the nearest word, for what is none; FileNotFoundError for a file that is not there.
    """
    declared: list[Declared] = []
    for word in words:
        if word.endswith(".toml"):
            declared += read_toml(user_path(word))
        elif word in BUILT_IN:
            declared.append(BUILT_IN[word])
        else:
            hint = f"{suggest(word, BUILT_IN)} (others are declared in a .toml file)"
            raise ValueError(f"there is no modality {word!r}; {hint}")
    names = [d.name for d in declared]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"modality {twice[0]!r} is declared twice, in {' '.join(words)}; leave one of the two out")
    return tuple(declared)


_TEXT, _NUMBER, _WHOLE = ((str,), "text"), ((int, float), "a number"), ((int,), "a whole number")
_NUMBERS = (int, float, list), "a number, or one for each channel"
_CHOICES = {name: get_args(_HINTS[name]) for name in ("kind", "normalise", "role", "loss")}
_CHOICES["kind"] += ("validity",)
_WORDS = {name: ((str,), f"one of {', '.join(choices)}") for name, choices in _CHOICES.items()}
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {  # what a key of a table accepts
    "files": _TEXT, "suffix": _TEXT, "key": _TEXT, "kind": _WORDS["kind"], "channels": _WHOLE,
    "classes": ((int, list), "the number of classes, or their names"), "stride": _WHOLE,
    "normalise": _WORDS["normalise"], "mean": _NUMBERS, "std": _NUMBERS, "scale": _NUMBER, "offset": _NUMBER,
    "unit": _TEXT, "nodata": ((int, float, list), "a number, or a list of them"),
    "void": _WHOLE, "window": ((list,), "[centre, width]"),
    "role": _WORDS["role"], "loss": _WORDS["loss"], "weight": _NUMBER, "of": _TEXT,
}  # fmt: skip


def read_toml(path: Path) -> list[Declared]:
    """The modalities that a TOML file declares, a table each. Raises ValueError that names file, table and key.

    A table named as a built-in modality starts from that one. A table of `kind = "validity"` is no modality: its
    files are masks that say where the map named by its key `of` is valid.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path} that declares modalities") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    if loose := [key for key, value in tables.items() if not isinstance(value, dict)]:
        raise ValueError(f"{path}: {loose[0]!r} lies outside a table; put it below the name of a modality: [thermal]")
    if not tables:
        raise ValueError(f"{path} declares nothing; write a table for each modality, such as [thermal]")
    masks: dict[str, str] = {}
    declared: list[Declared] = []
    for name, table in tables.items():
        where = f"{path}, [{name}]"
        _check(where, table)
        if table.get("kind") == "validity":
            if extra := set(table) - {"kind", "of", "files"}:
                raise ValueError(f"{where}: a validity mask has the keys of and files, not {min(extra)}")
            if "of" not in table:
                raise ValueError(f"{where}: of is missing: the modality that the mask belongs to, such as of = 'depth'")
            masks[table["of"]] = table.get("files", name)
        elif "of" in table:
            raise ValueError(f"{where}: of is for kind = 'validity' only")
        else:
            declared.append(_declared(where, name, table))
    if unknown := [name for name in masks if name not in [d.name for d in declared]]:
        raise ValueError(f"{path}: of = {unknown[0]!r} is no modality declared in it; {suggest(unknown[0], tables)}")
    return [replace(d, validity=masks.get(d.name, "")) for d in declared]


def _check(where: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if key not in _KEYS:
            raise ValueError(f"{where}: there is no key {key!r}; {suggest(key, _KEYS)}")
        (kinds, needed), choices = _KEYS[key], _CHOICES.get(key, ())
        if not isinstance(value, kinds) or isinstance(value, bool) or (choices and value not in choices):
            hint = suggest(str(value), choices, "change it")
            raise ValueError(f"{where}: {key} = {value!r}: {needed} is needed; {hint}")


def _declared(where: str, name: str, table: Mapping[str, Any]) -> Declared:
    """The modality that a table declares; what it leaves open is as in the built-in one of this name and kind."""
    start = BUILT_IN.get(name)
    kind = table.get("kind", start.modality.kind if start else "continuous")
    is_categorical = kind == "categorical"
    if start is None or start.modality.kind != kind:
        start = Declared(Modality(name, 1, (0.0,), (1.0,), kind=kind, num_classes=int(is_categorical)))
    begun = start.modality
    channels, classes = table.get("channels", begun.channels), table.get("classes", [])
    names, number = (tuple(map(str, classes)), len(classes)) if isinstance(classes, list) else ((), classes)
    if is_categorical and channels != 1:
        raise ValueError(f"{where}: channels = {channels}: class ids have one; leave it out")
    if classes and not is_categorical:
        raise ValueError(f"{where}: classes is for kind = 'categorical'")
    if ("mean" in table) != ("std" in table):
        raise ValueError(f"{where}: mean and std go together; give both, or neither to have them measured")
    same = channels == begun.channels
    own = {
        **{key: table[key] for key in ("stride", "normalise", "role", "loss") if key in table},
        "kind": kind,
        "channels": channels,
        "mean": _numbers(where, "mean", table.get("mean", begun.mean if same else 0.0), channels),
        "std": _numbers(where, "std", table.get("std", begun.std if same else 1.0), channels),
        "num_classes": (number or begun.num_classes) if is_categorical else 0,
        "weight": float(table.get("weight", begun.weight)),
    }
    reading = {key: table[key] for key in ("files", "suffix", "key", "scale", "offset", "unit", "void") if key in table}
    if "nodata" in table:
        values = table["nodata"] if isinstance(table["nodata"], list) else [table["nodata"]]
        reading["nodata"] = _numbers(where, "nodata", values, len(values))
    if "window" in table:
        reading["window"] = _numbers(where, "window", table["window"], 2)
    try:
        modality = replace(begun, **own)
        is_open = not number if is_categorical else modality.normalise == "fixed" and "mean" not in table
        return replace(start, modality=modality, measured=is_open, classes=names, **reading)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _numbers(where: str, key: str, value: Any, count: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * count
    if len(values) != count or not all(isinstance(v, (int, float)) for v in values):
        raise ValueError(f"{where}: {key} = {value!r}: {count} numbers are needed")
    return tuple(map(float, values))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
