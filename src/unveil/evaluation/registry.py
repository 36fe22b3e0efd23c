"""The protocols by name, and their dials: the keyword arguments of a protocol's function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from functools import partial

from .task import Task
from .types import Protocol, Split

GIVEN = 2  # what a protocol works on, and a seed


def protocols() -> dict[str, Protocol]:
    """Every protocol by its user's name: a file of this folder that holds a function of its own name."""
    folder = importlib.import_module(f"{__package__}.protocols")
    found: dict[str, Protocol] = {}
    for file in pkgutil.iter_modules(folder.__path__):
        function = getattr(importlib.import_module(f"{folder.__name__}.{file.name}"), file.name, None)
        if inspect.isfunction(function):
            found[file.name.replace("_", "-")] = function
    return found


def dials_of(protocol: Protocol) -> list[str]:
    """The names of a protocol's dials."""
    return list(inspect.signature(protocol).parameters)[GIVEN:]


def works_on(protocol: Protocol) -> type:
    """What a protocol is given: the type of its first argument."""
    first = next(iter(inspect.signature(protocol).parameters))
    subject: type = typing.get_type_hints(protocol)[first]
    return subject


def wants_features(protocol: Protocol) -> bool:
    """Whether a protocol works on a split of features, not on the task itself."""
    return works_on(protocol) is Split


def work_of(names: Sequence[str]) -> type:
    """What these protocols are given: a `Task` of labelled images, or what is needed to judge every pixel.

    Raises ValueError where they need different things; a name that no protocol has is left to `choose`.
    """
    known = protocols()
    kinds: dict[type, list[str]] = {}
    for name in names:
        kind = works_on(known[name]) if name in known else Task
        kinds.setdefault(Task if kind is Split else kind, []).append(name)
    if len(kinds) > 1:
        groups = " and ".join(", ".join(group) for group in kinds.values())
        raise ValueError(f"{groups} are measured on different kinds of data: give a command for each")
    return next(iter(kinds), Task)


def choose(names: Sequence[str], dials: Mapping[str, object]) -> dict[str, Protocol]:
    """The named protocols, each with those of the dials that it has.

    Raises ValueError for an unknown protocol, for a dial that none of the chosen ones has, and for a word that one of
    them does not know.
    """
    known = protocols()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]!r}?" if near else ";"
            raise ValueError(f"there is no protocol {name!r}{meant} there are {', '.join(sorted(known))}")
    for dial in dials:
        if not any(dial in dials_of(known[name]) for name in names):
            having = [name for name, protocol in known.items() if dial in dials_of(protocol)]
            told = f"{', '.join(having)} {'has' if len(having) == 1 else 'have'} it" if having else "no protocol has it"
            raise ValueError(f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no dial {dial!r}; {told}")
    for name in names:
        hints = typing.get_type_hints(known[name])
        for dial, value in dials.items():
            words = typing.get_args(hints.get(dial)) if typing.get_origin(hints.get(dial)) is typing.Literal else ()
            if words and value not in words:
                raise ValueError(f"{dial} of {name} is one of {', '.join(words)}; got {value!r}")
    return {
        name: partial(known[name], **{d: value for d, value in dials.items() if d in dials_of(known[name])})
        for name in dict.fromkeys(names)
    }
