"""The end of an error message for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def suggest(name: str, known: Iterable[object], otherwise: str = "", shown: Callable[[str], str] = str) -> str:
    """Either "did you mean a or b?", the known names most like this one, or `otherwise`, or "there are a, b, c"."""
    names = [str(k) for k in known]
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.7):
        return f"did you mean {' or '.join(map(shown, close))}?"
    return otherwise or f"there are {', '.join(names) or 'none'}"
