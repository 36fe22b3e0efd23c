"""The options of a function or dataclass: each with its type, default and meaning, and how its value is read from text.

An option is a keyword argument; its meaning is the line `name: meaning` of the docstring. The fields of an argument
whose default is a dataclass (`train: Hyperparameters`) are options of their own, so a recipe that takes it has the same
flat options as one that lists them in its signature. Text, numbers, `bool`, `Literal`, `tuple[int, ...]` and `X | None`
can be read from text, which is what the command line and YAML files hold.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, overload

from ..runs.console import log, suggest
from ..runs.run_config import OLD_VALUES

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
REQUIRED = inspect.Parameter.empty
_DATA_OPTIONS = ("data", "test_data")  # which take an address, or in Python the data themselves
DATA = ("modality", "modalities")  # arguments of a recipe that come from the data, not from the user
OWN_SCORE_GIVEN = "python"  # what stands for the file of a score that was given as a function
_SCALARS: dict[type, tuple[str, str]] = {
    int: ("a whole number", "100"),
    float: ("a number", "0.25"),
    str: ("a word", "NAME"),
    Path: ("a path", "PATH"),
}


def is_own_score(word: str) -> bool:
    """Whether a word names a score of the user's own, `my_mask.py:centre`, or one given as a function."""
    return re.fullmatch(rf"(?s)(?:.+\.py|{OWN_SCORE_GIVEN}):[A-Za-z_]\w*", word) is not None


def _is_module(kind: Any) -> bool:
    """Whether a kind is that of torch's modules, known by its name: importing it imports torch."""
    return getattr(kind, "__module__", "") == "torch.nn.modules.module" and getattr(kind, "__name__", "") == "Module"


def _is_score(kind: Any) -> bool:
    """Whether a kind is that of scores of tokens, known by its name: importing it imports torch."""
    return getattr(kind, "__name__", "") == "TokenScore"


def _is_text(kind: Any) -> bool:
    """Whether values of a kind can be read from text; others, such as a run or a Dataset, are given in Python alone."""
    return kind is bool or kind in _SCALARS or get_origin(kind) is Literal


class UsageError(ValueError):
    """A mistake of the user, and a hint how to correct it."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Option:
    """A keyword argument, and the flag of the same name: `batch_size: int` is `--batch-size 64`."""

    name: str
    kind: Any  # its annotation, evaluated
    default: Any
    meaning: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether the flag has no value and a counterpart `--no-x`."""
        return {*alternatives(self.kind)} - {types.NoneType} == {bool}

    @property
    def takes_many(self) -> bool:
        """Whether all words up to the next flag are its values."""
        return any(get_origin(k) in (tuple, Sequence) for k in alternatives(self.kind))

    @property
    def is_one_or_several(self) -> bool:
        """Whether its function gets a tuple, also of one value: `str | Sequence[str]`."""
        return any(get_origin(k) is Sequence for k in alternatives(self.kind))

    @property
    def _members(self) -> list[Any]:
        """The kinds that one value may have: those of its union, and of the union in its tuple."""
        every = alternatives(self.kind)
        kinds = [a for k in every for a in (get_args(k) if get_origin(k) in (tuple, Sequence) else (k,))]
        return [member for kind in kinds if kind is not ... for member in alternatives(kind)]

    @property
    def takes_scores(self) -> bool:
        """Whether a score of the user's own is a value: FILE.py:NAME, or in Python a function."""
        return any(map(_is_score, self._members))

    @property
    def is_parsable(self) -> bool:
        """Whether its values can be read from text."""
        return self.is_switch or any(map(_is_text, self._members))

    @property
    def choices(self) -> list[str]:
        """The values that a `Literal` in its annotation lists."""
        listed = (get_args(kind) for kind in self._members if get_origin(kind) is Literal)
        return list(dict.fromkeys(str(choice) for choices in listed for choice in choices))

    @property
    def example(self) -> str:
        """A use of the flag that would be accepted."""
        if self.default is False and not self.is_switch:  # the value may be left out
            return self.flag
        if self.default not in (REQUIRED, None, "", ()):
            return f"{self.flag} {spell(self.default)}"
        if self.choices:
            return f"{self.flag} {self.choices[0]}"
        return f"{self.flag} {next(_SCALARS[k][1] for k in self._members if k in _SCALARS)}"

    def parse(self, words: Sequence[str]) -> Any:
        """Its value, from the words that follow the flag. Raises UsageError for words that do not fit."""
        is_none = len(words) == 1 and words[0].lower() == "none" and words[0] not in self.choices
        if is_none and types.NoneType in alternatives(self.kind):
            return None
        for kind in sorted(alternatives(self.kind), key=lambda k: get_origin(k) is not Sequence):
            if get_origin(kind) in (tuple, Sequence):
                inner, *rest = get_args(kind)
                if rest and rest[0] is not ... and len(words) != 1 + len(rest):
                    raise UsageError(f"{self.flag} takes {1 + len(rest)} values, got {len(words)}")
                return tuple(self._parse_one(alternatives(inner), word) for word in words)
        return self._parse_one(alternatives(self.kind), words[0])

    def _parse_one(self, kinds: tuple[Any, ...], word: str) -> Any:
        word = self.current(word, warn=True)
        if self.takes_scores and is_own_score(word):
            return word
        for kind in kinds:
            if get_origin(kind) is Literal and word in map(str, get_args(kind)):
                return next(c for c in get_args(kind) if str(c) == word)
            if kind in _SCALARS:
                try:
                    return kind(word)
                except ValueError:
                    continue
        expected = [f"one of {', '.join(self.choices)}"] if self.choices else []
        expected += ["a score of your own, FILE.py:NAME"] * self.takes_scores
        expected += [_SCALARS[k][0] for k in kinds if k in _SCALARS]
        hint = suggest(word, self.choices, f"for example {self.example}", lambda choice: f"{self.flag} {choice}")
        raise UsageError(f"{self.flag} {word}: expected {' or '.join(expected)}", hint)

    def accept(self, value: Any) -> Any:
        """A value from Python in the option's own type: a path is text, a NumPy number a number, one value a tuple.

        Raises UsageError for a value of another type. Values of a `Literal` are checked where they are used.
        """
        if self.takes_scores and callable(value):
            from .own_score import text_of  # imports torch

            return text_of(value)
        plain = _address_of(value) if self.name in _DATA_OPTIONS else _plain(value)
        if self.is_one_or_several and plain is not None and not isinstance(plain, tuple):
            plain = (plain,)
        if not self.is_parsable or self._fits(self.kind, plain):
            return self.current(plain, warn=True)
        if isinstance(plain, float) and plain.is_integer() and self._fits(self.kind, int(plain)):
            return int(plain)
        if self.takes_many and self._fits(self.kind, (plain,)):
            return (plain,)
        names = [_SCALARS[k][0] for k in self._members if k in _SCALARS] + self.choices * (not self._members)
        expected = " or ".join(names) or "True or False"
        raise UsageError(
            f"{self.name} is {value!r}, of type {type(value).__name__}; {expected} is needed"
            f"{', or several of them' if self.takes_many else ''}",
            f"for example {self.name}={self.default!r}" if self.default not in (REQUIRED, None, ()) else "",
        )

    def _fits(self, kind: Any, value: Any) -> bool:
        if get_origin(kind) in (tuple, Sequence):
            inner, *rest = get_args(kind)
            several = isinstance(value, tuple) and (not rest or rest[0] is ... or len(value) == 1 + len(rest))
            return several and all(self._fits(inner, one) for one in value)
        if len(alternatives(kind)) > 1:
            return any(self._fits(one, value) for one in alternatives(kind))
        if get_origin(kind) is Literal:
            return not isinstance(value, tuple)
        if kind is not types.NoneType and not _is_text(kind):
            return _is_module(kind) and isinstance(value, kind)
        if kind is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return isinstance(value, str if kind is Path else kind) and (kind is bool or not isinstance(value, bool))

    def current(self, value: Any, warn: bool = False) -> Any:
        """A value in the spelling of this release, where it is one of release 0.1 that the option no longer lists."""
        old = OLD_VALUES.get(self.name, {})
        if not isinstance(value, str) or value not in old or value in self.choices:
            return value
        if warn:
            log(f"note: {self.flag} {value} is now {self.flag} {old[value]}")
        return old[value]


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union; a kind that is none stands alone."""
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def spell(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(spell, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None else str(value)


def options_in(function: Callable[..., Any], skip: Collection[str] = ()) -> list[Option]:
    """The options of a function or dataclass, in the order of its signature."""
    return list(_options(inspect.unwrap(function, stop=lambda f: hasattr(f, "__signature__")), skip))


def _options(function: Callable[..., Any], skip: Collection[str]) -> Iterator[Option]:
    explained = meanings(function)
    namespace: dict[str, Any] = {}
    for owner in _bases(function):
        namespace |= getattr(owner, "__globals__", None) or vars(sys.modules[owner.__module__])
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


def _bases(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The classes that the fields of a dataclass come from, the first ones first; of a function itself."""
    return [*reversed(inspect.getmro(function))] if isinstance(function, type) else [function]


def is_group(parameter: inspect.Parameter) -> bool:
    """Whether an argument is a dataclass whose fields are options, as `train` is."""
    return parameter.name not in DATA and is_dataclass(parameter.default)


def _kind_of(value: Any) -> Any:
    """The kind of an argument that has a default but no annotation."""
    return tuple[type(value[0]), ...] if isinstance(value, tuple) and value else type(value)  # type: ignore[misc]


def meanings(function: Callable[..., Any]) -> dict[str, str]:
    """What each argument means: the docstring's lines `name: meaning`, continued where the indent is deeper.

    Those of a class add to its bases'.
    """
    names = set(inspect.signature(function).parameters)
    explained: dict[str, str] = {}
    name, indent = "", 0
    for line in "\n".join(inspect.cleandoc(owner.__doc__ or "") for owner in _bases(function)).splitlines():
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


def _plain(value: Any) -> Any:
    """Paths, runs and devices as text, lists as tuples, and the numbers of NumPy and torch as Python's own."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].device):
        return str(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple, range)) else value


def _address_of(value: Any) -> Any:
    """The address of data, under which this process opens what was given in Python."""
    if value is None or isinstance(value, str | os.PathLike):
        return _plain(value)
    from ..data.given import address_of  # imports torch

    try:
        return address_of(value)
    except TypeError as error:
        raise UsageError(str(error)) from error


@overload
def as_text(value: None) -> None: ...
@overload
def as_text(value: object) -> str: ...
def as_text(value: object) -> str | None:
    """An address that `accept_python_values` has put into text, for type checkers."""
    assert value is None or isinstance(value, str)
    return value


def as_tuple(values: T | Sequence[T]) -> tuple[T, ...]:
    """One value or several that `accept_python_values` has put into a tuple, for type checkers."""
    assert isinstance(values, tuple)
    return values


def accept_python_values(function: Callable[P, R]) -> Callable[P, R]:
    """The function, its arguments put into the types of its options first (`Option.accept`)."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = inspect.signature(function).bind(*args, **kwargs)
        for option in options_in(function):
            if option.name in bound.arguments:
                bound.arguments[option.name] = option.accept(bound.arguments[option.name])
        return function(*bound.args, **bound.kwargs)

    return call


def check_choices(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that is none of those which the option's `Literal` annotation lists."""
    for option in options_in(function, skip=DATA):
        value = option.current(values.get(option.name, option.default))
        kinds = alternatives(option.kind)
        if option.takes_scores and (callable(value) or is_own_score(str(value))):
            continue
        kinds = tuple(kind for kind in kinds if not _is_score(kind))
        is_closed = all(get_origin(kind) is Literal or kind is types.NoneType for kind in kinds)
        allowed = [choice for kind in kinds for choice in get_args(kind)] + [None] * (types.NoneType in kinds)
        if is_closed and value not in allowed:
            own = " (or a score of your own, FILE.py:NAME)" if option.takes_scores else ""
            raise ValueError(f"{option.name} must be one of {', '.join(option.choices)}{own}; got {value!r}")
