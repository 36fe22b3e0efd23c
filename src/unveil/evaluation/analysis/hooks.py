"""What parts of a model are given while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@contextmanager
def record_inputs(parts: Sequence[M]) -> Iterator[list[tuple[M, tuple[Any, ...]]]]:
    """While this lasts, each call of one of the parts adds it and its positional arguments to the list."""
    read: list[tuple[M, tuple[Any, ...]]] = []

    def note(part: M, given: tuple[Any, ...]) -> None:
        read.append((part, given))

    hooks = [part.register_forward_pre_hook(note) for part in parts]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()
