"""torch.compile for functions that are compiled once each, without a graph break."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import FunctionType
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_numbers = count()


def own_graph(function: Callable[[T], R]) -> Callable[[T], R]:
    """A function compiled for inputs of one shape, under code of its own.

    torch.compile keeps graphs with the code that they were made of: to one code, every other model and size is a
    recompilation, all guards of the others are checked in each call, and the ninth is an error.
    """

    def step(given: T) -> R:
        return function(given)

    name = f"step_{next(_numbers)}"
    own = FunctionType(step.__code__.replace(co_name=name), step.__globals__, name, None, step.__closure__)
    compiled: Callable[[T], R] = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled


def not_compiled(error: Exception, what: str) -> str:
    """A line on a compiler that has failed: `what` goes on without it."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"note: torch.compile does not work here ({reason}); {what} without it"
