"""Records the inputs of modules during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@contextmanager
def record_inputs(modules: Sequence[M]) -> Iterator[list[tuple[M, tuple[Any, ...]]]]:
    """A list to which each call of one of the modules adds the module and its positional arguments."""
    calls: list[tuple[M, tuple[Any, ...]]] = []

    def record(module: M, inputs: tuple[Any, ...]) -> None:
        calls.append((module, inputs))

    hooks = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
