"""Command lines and `--help`: a keyword argument of a function is the flag of the same name."""

from __future__ import annotations

import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..recipes.options import REQUIRED, Option, UsageError, alternatives, options_in, spell
from ..runs.console import log, suggest
from ..runs.run_config import OLD_NAMES


def flags_of(function: Callable[..., Any], skip: Collection[str] = ()) -> list[Option]:
    """The flags of a function or dataclass, in the order of its signature."""
    return [option for option in options_in(function, skip) if option.is_parsable]


def is_flag(word: str) -> bool:
    """Whether a word opens a flag, not a value: `-1` and `-.5e-3` are numbers."""
    return word.startswith("-") and word != "-" and not re.fullmatch(r"-\.?\d.*", word)


def flag_name(word: str) -> str:
    """The argument's name in a word such as `--batch-size` or `--batch_size=64`."""
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def by_name(flags: Iterable[Option]) -> dict[str, Option]:
    """Flags by the names that a word may have: a switch also as `no_x`. Of one name they take the values of each."""
    named: dict[str, Option] = {}
    for flag in flags:
        other = named.get(flag.name, flag)
        kind = flag.kind if other.kind == flag.kind else typing.Union[other.kind, flag.kind]  # noqa: UP007  of values
        named[flag.name] = replace(flag, kind=kind)
    return named | {f"no_{name}": flag for name, flag in named.items() if flag.is_switch}


def with_current_names(words: Sequence[str], flags: Iterable[Option]) -> list[str]:
    """The words with flags of release 0.1 under their names of this release, which a note says."""
    known, current = by_name(flags), []
    for word in words:
        name = OLD_NAMES.get(flag_name(word), "")
        if is_flag(word) and name in known and flag_name(word) not in known:
            old, equals, value = word.partition("=")
            log(f"note: {old} is now {known[name].flag}")
            word = known[name].flag + equals + value
        current.append(word)
    return current


def split(words: Sequence[str], flags: Iterable[Option]) -> Iterator[tuple[str, list[str]]]:
    """Each flag's word with the words that are its values; a word of its own comes as ("", [word])."""
    known = by_name(flags)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_flag(word):
            yield "", [word]
            continue
        head, equals, value = word.partition("=")
        flag = known.get(flag_name(head))
        most = 0 if equals or (flag and flag.is_switch) else 1 if flag and not flag.takes_many else len(rest)
        taken = next((i for i, value in enumerate(rest[:most]) if is_flag(value)), min(most, len(rest)))
        yield head, [value] * bool(equals) + rest[:taken]
        del rest[:taken]


def parse(words: Sequence[str], flags: Sequence[Option]) -> tuple[list[str], dict[str, Any]]:
    """The words that belong to no flag, and the arguments that were given: only those, so defaults stay the function's.

    Raises `UsageError` for an unknown flag, with the nearest known ones, and for a value that does not fit.
    """
    known = by_name(flags)
    plain: list[str] = []
    given: dict[str, Any] = {}
    for word, values in split(words, flags):
        name = flag_name(word)
        flag = known.get(name)
        if not word:
            plain += values
        elif flag is None:
            raise _unknown(word, values, flags)
        elif flag.is_switch:
            if values:
                raise UsageError(f"{flag.flag} takes no value, got {values[0]}", f"{flag.flag} or --no-{flag.flag[2:]}")
            given[flag.name] = name == flag.name
        elif not values and bool in alternatives(flag.kind):
            given[flag.name] = True
        elif not values:
            raise UsageError(f"{flag.flag} needs a value", f"for example {flag.example}")
        else:
            given[flag.name] = flag.parse(values)
    missing = [f for f in flags if f.default is REQUIRED and f.name not in given]
    if missing:
        raise UsageError(f"{missing[0].flag} is missing", f"for example {missing[0].example}")
    return plain, given


def _unknown(word: str, values: Sequence[str], flags: Iterable[Option]) -> UsageError:
    names = ["--" + name.replace("_", "-") for name in by_name(flags)]
    hint = suggest(word.replace("_", "-"), names, "--help lists the flags", lambda flag: " ".join([flag, *values]))
    return UsageError(f"there is no flag {word}", hint)


def help_text(head: str, summary: str, groups: Mapping[str, Sequence[Option]], example: str) -> str:
    """The help of a command: its summary, its flags by group and an example."""
    parts = [f"{head}\n\n{summary}"]
    for title, flags in groups.items():
        if flags:
            parts.append(f"{title}:\n" + columns([(_usage(f), _explained(f)) for f in flags]))
    return "\n\n".join([*parts, f"for example:\n  {example}"])


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, the second wrapped to the terminal."""
    width = min(max(len(left) for left, _ in rows), 26)
    room = max(40, min(shutil.get_terminal_size().columns, 110) - width - 4)
    lines = []
    for left, right in rows:
        first, *more = textwrap.wrap(right, room) or [""]
        if len(left) > width:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:{width}}  {first}".rstrip())
        lines += [" " * (width + 4) + line for line in more]
    return "\n".join(lines)


def _usage(flag: Option) -> str:
    if flag.is_switch:
        return f"{flag.flag}, --no-{flag.name.replace('_', '-')}" if flag.default is not False else flag.flag
    value = "X ..." if flag.takes_many else "[X]" if bool in alternatives(flag.kind) else "X"
    return f"{flag.flag} {value}"


def _explained(flag: Option) -> str:
    is_listed = all(choice in flag.meaning for choice in flag.choices)
    parts = [flag.meaning, "" if is_listed else f"one of {', '.join(flag.choices)}"]
    if flag.default is REQUIRED:
        parts.append("required")
    elif flag.default is not None and flag.default is not False and flag.default != ():
        parts.append(f"default {'yes' if flag.default is True else spell(flag.default)}")
    return "; ".join(filter(None, parts))
