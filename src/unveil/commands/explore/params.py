"""The parameters of a request, checked: a page of ours sends none of the mistakes that these name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .masks import METHODS, Asked

MAX_SEED = 2**31


def whole(params: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number of a request between two others. Raises ValueError for anything else."""
    value = params.get(name, default)
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is a whole number from {low} to {high}; got {value!r}")
    return value


def text(params: Mapping[str, Any], name: str, default: str = "") -> str:
    """A short text of a request. Raises ValueError for anything else."""
    value = params.get(name, default)
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"{name} is a text of 1000 letters at most")
    return value


def asked_mask(params: Mapping[str, Any]) -> Asked:
    """The mask that a request asks for. Raises ValueError where it says none."""
    method = text(params, "method", "uniform")
    if method not in METHODS:
        raise ValueError(f"there is no masking {method!r}; there are {', '.join(METHODS)}")
    visible, drawn, grid = params.get("visible", {}), params.get("drawn"), params.get("grid")
    if not isinstance(visible, dict) or not all(type(v) is int for v in visible.values()):
        raise ValueError("visible is a number of patches for each modality")
    if drawn is not None and not (
        isinstance(drawn, dict)
        and all(isinstance(cells, list) and all(type(c) is int for c in cells) for cells in drawn.values())
    ):
        raise ValueError("drawn is a list of visible patches for each modality")
    if grid is not None and not (
        isinstance(grid, list) and len(grid) == 2 and all(type(n) is int and 0 < n < 1000 for n in grid)
    ):
        raise ValueError("grid is rows and columns of patches")
    return Asked(method, visible, whole(params, "seed", 0, MAX_SEED, 0), drawn, tuple(grid) if grid else None)
