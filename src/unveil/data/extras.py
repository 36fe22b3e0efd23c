"""Modules that not every installation has, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(module: str, needed: str) -> Any:
    """A module that not every installation has; where it is missing, a ValueError with the text `needed`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(needed) from error
