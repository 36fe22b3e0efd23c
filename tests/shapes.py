"""The check that runs on every call of the package under test: tensors against their annotated shapes and dtypes."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype over the annotations that hold a shape.

    The others are mypy's: a protocol cannot be told from a value, and an `int` where a `float` is asked for is fine.
    """
    function.__annotations__ = {
        name: hint if _has_shape(hint) else Any for name, hint in function.__annotations__.items()
    }
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(_has_shape(inner) for inner in typing.get_args(hint))
