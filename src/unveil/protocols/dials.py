"""The protocols by name, and their dials: the keyword arguments of a protocol's function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from functools import partial

from .protocol import Protocol, Split

GIVEN = 2  # what a protocol works on, and a seed


def protocols() -> dict[str, Protocol]:
    """Every protocol by its user's name: a file of this folder that holds a function of its own name."""
    folder = importlib.import_module(__name__.rpartition(".")[0])
    found: dict[str, Protocol] = {}
    for file in pkgutil.iter_modules(folder.__path__):
        function = getattr(importlib.import_module(f"{folder.__name__}.{file.name}"), file.name, None)
        if inspect.isfunction(function):
            found[file.name.replace("_", "-")] = function
    return found


def dials_of(protocol: Protocol) -> list[str]:
    """The names of a protocol's dials."""
    return list(inspect.signature(protocol).parameters)[GIVEN:]


def wants_features(protocol: Protocol) -> bool:
    """Whether a protocol works on a split of features, not on the task itself."""
    first = next(iter(inspect.signature(protocol).parameters))
    return typing.get_type_hints(protocol)[first] is Split


def choose(names: Sequence[str], dials: Mapping[str, object]) -> dict[str, Protocol]:
    """The named protocols, each with those of the dials that it has.

    Raises ValueError for an unknown protocol and for a dial that none of the chosen ones has.
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
    return {
        name: partial(known[name], **{d: value for d, value in dials.items() if d in dials_of(known[name])})
        for name in dict.fromkeys(names)
    }
