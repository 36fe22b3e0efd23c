"""The texts of `--help`: what a command does, its flags with their defaults, one use of it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from ..recipes.options import REQUIRED, Option, spell


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
        return f"{flag.flag}, --no-{flag.name.replace('_', '-')}" if flag.default is True else flag.flag
    return f"{flag.flag} X ..." if flag.takes_many else f"{flag.flag} X"


def _explained(flag: Option) -> str:
    is_listed = all(choice in flag.meaning for choice in flag.choices)
    parts = [flag.meaning, "" if is_listed else f"one of {', '.join(flag.choices)}"]
    if flag.default is REQUIRED:
        parts.append("required")
    elif flag.default is not None and flag.default is not False and flag.default != ():
        parts.append(f"default {'yes' if flag.default is True else spell(flag.default)}")
    return "; ".join(filter(None, parts))
