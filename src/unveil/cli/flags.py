"""A function's signature as flags: read from the signature, parsed from words, explained by the docstring.

A keyword argument is a flag of the same name: `batch_size: int = 4096` is `--batch-size 4096`. Text, numbers, `bool`
(`--x`, `--no-x`), `Literal` (one of a few), `tuple[int, ...]` (one value or more) and `X | None` are understood; an
argument of any other type is none of the command line's business. Its meaning is the docstring's line `name: meaning`.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..recipes.options import REQUIRED, options_in

_SCALARS: dict[type, tuple[str, str]] = {
    int: ("a whole number", "100"),
    float: ("a number", "0.25"),
    str: ("a word", "NAME"),
    Path: ("a path", "PATH"),
}


class UsageError(ValueError):
    """A mistake on the command line, and what would put it right."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Flag:
    """One keyword argument of a function, as the command line sees it."""

    name: str
    kind: Any
    default: Any
    meaning: str = ""

    @property
    def spelling(self) -> str:
        """The flag as it is typed."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it stands alone and has a counterpart `--no-x`."""
        return self.kind is bool

    @property
    def takes_many(self) -> bool:
        """Whether all words up to the next flag are its values."""
        return any(typing.get_origin(k) is tuple for k in alternatives(self.kind))

    @property
    def example(self) -> str:
        """A use of the flag that would be accepted."""
        if self.default not in (REQUIRED, None, "", ()):
            return f"{self.spelling} {spell(self.default)}"
        for kind in alternatives(self.kind):
            if typing.get_origin(kind) is tuple:
                kind = typing.get_args(kind)[0]
            if typing.get_origin(kind) is Literal:
                return f"{self.spelling} {typing.get_args(kind)[0]}"
            if kind in _SCALARS:
                return f"{self.spelling} {_SCALARS[kind][1]}"
        raise AssertionError(f"{self.spelling} has a kind that no flag can have: {self.kind}")

    def convert(self, words: Sequence[str]) -> Any:
        """The argument's value, from the words that followed the flag."""
        for kind in alternatives(self.kind):
            if typing.get_origin(kind) is tuple:
                inner, *rest = typing.get_args(kind)
                if rest and rest[0] is not ... and len(words) != 1 + len(rest):
                    raise UsageError(f"{self.spelling} takes {1 + len(rest)} values, got {len(words)}")
                return tuple(self._one(alternatives(inner), word) for word in words)
        return self._one(alternatives(self.kind), words[0])

    def _one(self, kinds: tuple[Any, ...], word: str) -> Any:
        choices = [str(c) for k in kinds if typing.get_origin(k) is Literal for c in typing.get_args(k)]
        for kind in kinds:
            if kind is types.NoneType and word.lower() == "none":
                return None
            if typing.get_origin(kind) is Literal and word in choices:
                return next(c for c in typing.get_args(kind) if str(c) == word)
            if kind in _SCALARS:
                try:
                    return kind(word)
                except ValueError:
                    continue
        wanted = [f"one of {', '.join(choices)}"] if choices else []
        wanted += [_SCALARS[k][0] for k in kinds if k in _SCALARS]
        close = nearest(word, choices)
        raise UsageError(
            f"{self.spelling} {word}: expected {' or '.join(wanted)}",
            f"did you mean {self.spelling} {close[0]}?" if close else f"for example {self.example}",
        )


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union; a kind that is none stands alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _is_sayable(kind: Any) -> bool:
    """Whether a value of this kind can be typed on a command line."""
    if kind is bool:
        return True
    kinds = [k for k in alternatives(kind) if k is not types.NoneType]
    inner = [a for k in kinds for a in (typing.get_args(k) if typing.get_origin(k) is tuple else [k]) if a is not ...]
    return bool(inner) and all(k in _SCALARS or typing.get_origin(k) is Literal for i in inner for k in alternatives(i))


def spell(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple):
        return " ".join(map(spell, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None else str(value)


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """The names most like a word, the closest first."""
    return difflib.get_close_matches(word, list(names), n=3, cutoff=0.6)


def flags_of(function: Callable[..., Any], skip: Collection[str] = ()) -> list[Flag]:
    """The flags of a function, in the order of its signature."""
    return [Flag(**vars(option)) for option in options_in(function, skip) if _is_sayable(option.kind)]


def is_flag(word: str) -> bool:
    """Whether a word opens a flag, not a value: `-1` and `-.5e-3` are numbers."""
    return word.startswith("-") and word != "-" and not re.fullmatch(r"-\.?\d.*", word)


def flag_name(word: str) -> str:
    """The argument's name in a word such as `--batch-size` or `--batch_size=64`."""
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def split(words: Sequence[str], flags: Iterable[Flag]) -> Iterator[tuple[str, list[str]]]:
    """Each flag's word with the words that are its values; a word of its own comes as ("", [word])."""
    known = {f.name: f for f in flags} | {f"no_{f.name}": f for f in flags if f.is_switch}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_flag(word):
            yield "", [word]
            continue
        head, equals, value = word.partition("=")
        flag = known.get(flag_name(head))
        most = 0 if equals or (flag and flag.is_switch) else 1 if flag and not flag.takes_many else len(rest)
        taken = 0
        while taken < most and not is_flag(rest[taken : taken + 1][0] if taken < len(rest) else "-x"):
            taken += 1
        yield head, [value] * bool(equals) + rest[:taken]
        del rest[:taken]


def parse(words: Sequence[str], flags: Sequence[Flag]) -> tuple[list[str], dict[str, Any]]:
    """The words that belong to no flag, and the arguments that were given: only those, so defaults stay the function's.

    Raises `UsageError` for a flag that is not there, with the nearest that are, and for a value that does not fit.
    """
    known = {f.name: f for f in flags}
    switches = {f"no_{f.name}": f for f in flags if f.is_switch}
    plain: list[str] = []
    given: dict[str, Any] = {}
    for word, values in split(words, flags):
        name = flag_name(word)
        flag = known.get(name) or switches.get(name)
        if not word:
            plain += values
        elif flag is None:
            raise unknown(word, values, flags)
        elif flag.is_switch:
            if values:
                raise UsageError(f"{flag.spelling} takes no value, got {values[0]}", f"{flag.spelling} or --no-{name}")
            given[flag.name] = name in known
        elif not values:
            raise UsageError(f"{flag.spelling} needs a value", f"for example {flag.example}")
        else:
            given[flag.name] = flag.convert(values)
    missing = [f for f in flags if f.default is REQUIRED and f.name not in given]
    if missing:
        raise UsageError(f"{missing[0].spelling} is missing", f"for example {missing[0].example}")
    return plain, given


def unknown(word: str, values: Sequence[str], flags: Iterable[Flag]) -> UsageError:
    """The error for a flag that is not there."""
    names = [f.spelling for f in flags] + [f"--no-{f.name.replace('_', '-')}" for f in flags if f.is_switch]
    close = nearest(word.replace("_", "-"), names)
    hint = f"did you mean {' or '.join(' '.join([c, *values]) for c in close)}?" if close else "--help lists the flags"
    return UsageError(f"there is no flag {word}", hint)
