"""The options of a function: its keyword arguments, each with its type, default and meaning.

The meaning is the line `name: meaning` of the docstring. The fields of an argument `train` (`Hyperparameters`) are
options of their own, so a recipe that takes it has the same flat options as one that lists them in its signature.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, get_args, get_origin

REQUIRED = inspect.Parameter.empty
DATA = ("modality", "modalities")  # arguments of a recipe that come from the data, not from the user
SHARED = "train"  # the argument of a recipe that holds the hyper-parameters which all recipes share


@dataclass(frozen=True)
class Option:
    """A keyword argument. `kind` is its annotation, evaluated."""

    name: str
    kind: Any
    default: Any
    meaning: str = ""


def options_in(function: Callable[..., Any], skip: Collection[str] = ()) -> list[Option]:
    """The options of a function or dataclass, in the order of its signature."""
    return list(_options(inspect.unwrap(function), skip))


def _options(function: Callable[..., Any], skip: Collection[str]) -> Iterator[Option]:
    explained = meanings(function)
    namespace = getattr(function, "__globals__", None) or vars(sys.modules[function.__module__])
    for p in inspect.signature(function).parameters.values():
        if p.name in skip or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if is_group(p):
            for option in options_in(type(p.default)):
                yield Option(option.name, option.kind, getattr(p.default, option.name), option.meaning)
            continue
        try:
            kind = eval(p.annotation, namespace) if isinstance(p.annotation, str) else p.annotation
        except NameError:  # imported for type checkers only
            kind = object
        if kind is REQUIRED:
            kind = str if p.default in (REQUIRED, None) else _kind_of(p.default)
        yield Option(p.name, kind, p.default, explained.get(p.name, ""))


def is_group(parameter: inspect.Parameter | None) -> bool:
    """Whether an argument is the one whose fields are options."""
    return parameter is not None and parameter.name == SHARED and is_dataclass(parameter.default)


def _kind_of(value: Any) -> Any:
    """The kind of an argument that has a default but no annotation."""
    return tuple[type(value[0]), ...] if isinstance(value, tuple) and value else type(value)  # type: ignore[misc]


def meanings(function: Callable[..., Any]) -> dict[str, str]:
    """What each argument means: the docstring's lines `name: meaning`, continued where the indent is deeper."""
    names = set(inspect.signature(function).parameters)
    explained: dict[str, str] = {}
    name, indent = "", 0
    for line in (inspect.getdoc(function) or "").splitlines():
        entry = re.match(r"\s*(?:- )?`{0,2}(\w+)`{0,2}: +(.+)", line)
        depth = len(line) - len(line.lstrip())
        if entry and entry[1] in names:
            name, indent = entry[1], depth
            explained[name] = entry[2]
        elif name and line.strip() and depth > indent:
            explained[name] += " " + line.strip()
        else:
            name = ""
    return explained


def check_choices(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that is none of those which the option's `Literal` annotation lists."""
    for option in options_in(function, skip=DATA):
        value = values.get(option.name, option.default)
        if get_origin(option.kind) is Literal and value not in get_args(option.kind):
            raise ValueError(f"{option.name} must be one of {', '.join(get_args(option.kind))}; got {value!r}")
