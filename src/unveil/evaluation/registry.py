"""The protocols by name, and their options: the fields of a protocol's dataclass."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ..recipes.options import options_in
from ..recipes.registry import load_file
from ..runs.console import suggest, user_path
from .types import EvaluationProtocol

Data = Literal["labelled images", "images with a label per pixel", "samples for a run's decoders"]
DATA: dict[str, Data] = {
    "features": "labelled images",
    "images": "labelled images",
    "dense": "images with a label per pixel",
    "model": "samples for a run's decoders",
}


def protocols() -> dict[str, type[EvaluationProtocol]]:
    """Every protocol of the package by its user's name: the file `knn_whitened.py` holds `knn-whitened`."""
    folder = importlib.import_module(f"{__package__}.protocols")
    files = [file.name for file in pkgutil.iter_modules(folder.__path__)]
    return {_name(file): _protocol_in(importlib.import_module(f"{folder.__name__}.{file}")) for file in files}


def find_protocol(name: str) -> type[EvaluationProtocol]:
    """A protocol by name, or of a user's own `.py` file. Raises ValueError with the names that there are."""
    if name.endswith(".py"):
        return _protocol_in(load_file(user_path(name), "protocol"))
    known = protocols()
    if name not in known:
        raise ValueError(f"there is no protocol {name!r}; {suggest(name, sorted(known))}")
    return known[name]


def _name(stem: str) -> str:
    return stem.replace("_", "-")


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _protocol_in(module: ModuleType) -> type[EvaluationProtocol]:
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    classes = [value for value in own if hasattr(value, "needs") and hasattr(value, "run")]
    if len(classes) != 1:
        raise ValueError(f"{module.__file__} has {len(classes)} classes with `needs` and `run`; a protocol is one")
    return classes[0]


def options_of(protocol: type[EvaluationProtocol]) -> list[str]:
    """The names of a protocol's options."""
    return [option.name for option in fields(typing.cast("Any", protocol))]


def data_for(names: Iterable[str]) -> Data:
    """The kind of data that these protocols run on. Raises ValueError where they need different kinds."""
    kinds: dict[Data, list[str]] = {}
    for name in names:
        kinds.setdefault(DATA[find_protocol(name)().needs], []).append(name)
    if len(kinds) > 1:
        groups = " and ".join(f"{', '.join(group)} on {kind}" for kind, group in kinds.items())
        raise ValueError(f"{groups}: these are different kinds of data; give a command for each")
    return next(iter(kinds), "labelled images")


def choose(names: Sequence[str], options: Mapping[str, object] | None = None) -> dict[str, EvaluationProtocol]:
    """The named protocols, each with those of the options that it has; a word goes to those that list it.

    Raises ValueError for an unknown protocol, for an option that none of the chosen ones has, and for a word that none
    of them lists among its choices.
    """
    chosen = {name: find_protocol(name) for name in names}
    options = options or {}
    for option in options:
        if not any(option in options_of(protocol) for protocol in chosen.values()):
            having = [name for name, protocol in protocols().items() if option in options_of(protocol)]
            there = f"{', '.join(having)} {_has(having)} it" if having else "no protocol has it"
            raise ValueError(f"{' and '.join(names)} {_has(names)} no option {option!r}; {there}")
    given: dict[str, dict[str, object]] = {name: {} for name in chosen}
    for option, value in options.items():
        refused = []
        for name, protocol in chosen.items():
            if option in options_of(protocol):
                kind = typing.get_type_hints(protocol)[option]
                choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
                if choices and value not in choices:
                    refused.append(f"{option} of {name} is one of {', '.join(choices)}")
                else:
                    given[name][option] = value
        if refused and not any(option in own for own in given.values()):
            raise ValueError(f"{'; '.join(refused)}; got {value!r}")
    return {_name(Path(name).stem): create(protocol, given[name]) for name, protocol in chosen.items()}


def create(protocol: type[EvaluationProtocol], options: Mapping[str, object]) -> EvaluationProtocol:
    """A protocol with those of the options that it has."""
    known = {option.name: option for option in options_in(protocol)}
    return protocol(**{name: known[name].accept(value) for name, value in options.items() if name in known})
