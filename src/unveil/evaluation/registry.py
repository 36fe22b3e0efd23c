"""The protocols by name, and their options: the fields of a protocol's dataclass."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from ..modeling.types import Pool
from ..recipes.options import Option, options_in
from ..recipes.registry import load_file
from ..runs.console import suggest, user_path
from .types import EvaluationProtocol

Classification = Literal["knn", "knn-whitened", "linear", "linear-lbfgs", "attentive", "finetune"]
Data = Literal[
    "labelled images",
    "images with a label per pixel",
    "images with boxes",
    "videos with masks of objects",
    "samples for a run's decoders",
]
DATA: dict[str, Data] = {
    "features": "labelled images",
    "images": "labelled images",
    "dense": "images with a label per pixel",
    "boxes": "images with boxes",
    "videos": "videos with masks of objects",
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


@dataclass(frozen=True)
class Repeated:
    """The options of a protocol that repeats another one, whose options are given beside its own.

    by: the protocol that is repeated, with all of its options: knn, knn-whitened, linear, linear-lbfgs, attentive or
        finetune
    """

    by: Classification = "linear-lbfgs"
    options: Mapping[str, object] = field(default_factory=dict)  # of the repeated protocol

    def __post_init__(self) -> None:
        self.repeated()

    @property
    def pool(self) -> Pool | None:
        """What the repeated protocol reads where the command gives no pool."""
        return getattr(self.repeated(), "pool", None)

    @property
    def reads_tokens(self) -> bool:
        """Whether the repeated protocol reads tokens, and not one feature an image."""
        return getattr(self.repeated(), "reads_tokens", False)

    def repeated(self) -> EvaluationProtocol:
        """The protocol that is repeated. Raises ValueError for options that it does not take."""
        return create(find_protocol(self.by), self.options)


def options_of(protocol: type[EvaluationProtocol], given: Mapping[str, object] | None = None) -> dict[str, Option]:
    """A protocol's options by name; with those of the protocol that it repeats, `given["by"]` or its default.

    (`keep` is not among these: it names the file of one fine-tuning.)
    """
    own = {option.name: option for option in options_in(protocol, skip=("options",))}
    if issubclass(protocol, Repeated):
        by = (given or {}).get("by", own["by"].default)
        if by in own["by"].choices:
            own = {name: o for name, o in options_of(find_protocol(str(by))).items() if name != "keep"} | own
    return own


def data_for(names: Iterable[str]) -> Data:
    """The kind of data that these protocols run on. Raises ValueError where they need different kinds."""
    kinds: dict[Data, list[str]] = {}
    for name in names:
        protocol = find_protocol(name)
        needs: Any = protocol.needs
        needs = protocol().needs if isinstance(needs, property) else needs  # which depends on options
        kinds.setdefault(DATA[needs], []).append(name)
    if len(kinds) > 1:
        groups = " and ".join(f"{', '.join(group)} on {kind}" for kind, group in kinds.items())
        raise ValueError(f"{groups}: these are different kinds of data; give a command for each")
    return next(iter(kinds), "labelled images")


def choose(names: Sequence[str], options: Mapping[str, object] | None = None) -> dict[str, EvaluationProtocol]:
    """The named protocols, each with those of the options that it has; a word goes to those that list it.

    Raises ValueError for an unknown protocol, for an option that none of the chosen ones has, and for a word that none
    of them lists among its choices.
    """
    options = options or {}
    chosen = {name: find_protocol(name) for name in names}
    known = {name: options_of(protocol, options) for name, protocol in chosen.items()}
    given: dict[str, dict[str, object]] = {name: {} for name in chosen}
    for option, value in options.items():
        having = [name for name in chosen if option in known[name]]
        if not having:
            others = list(_having(option))
            there = f"{', '.join(others)} {_has(others)} it" if others else "no protocol has it"
            raise ValueError(f"{' and '.join(names)} {_has(names)} no option {option!r}; {there}")
        listed = {name: known[name][option].choices for name in having if not known[name][option].takes_many}
        refusing = [name for name, choices in listed.items() if choices and value is not None and value not in choices]
        if refusing == having:
            refused = "; ".join(f"{option} of {name} is one of {', '.join(listed[name])}" for name in refusing)
            raise ValueError(f"{refused}; got {value!r}")
        for name in having:
            if name not in refusing:
                given[name][option] = value
    return {_name(Path(name).stem): create(protocol, given[name]) for name, protocol in chosen.items()}


def _having(option: str) -> Iterator[str]:
    """The protocols that have an option, some of them when they repeat another."""
    for name, protocol in protocols().items():
        if option in options_of(protocol):
            yield name
        elif issubclass(protocol, Repeated):
            choices = options_of(protocol)["by"].choices
            yield from [f"{name} --by {by}" for by in choices if option in options_of(protocol, {"by": by})][:1]


def create(protocol: type[EvaluationProtocol], options: Mapping[str, object]) -> EvaluationProtocol:
    """A protocol with these options. Raises ValueError for one that it does not have."""
    known = options_of(protocol, options)
    for name in options:
        if name not in known:
            raise ValueError(f"{protocol.__name__.lower()} has no option {name!r}; {suggest(name, sorted(known))}")
    values = {name: known[name].accept(value) for name, value in options.items()}
    if issubclass(protocol, Repeated):
        names = [own.name for own in fields(protocol)]
        repeated = {name: values.pop(name) for name in list(values) if name not in names}
        return cast("EvaluationProtocol", protocol(**values, options=repeated))
    return protocol(**values)
