"""Options of release 0.1 that have another spelling now: in flags, keyword arguments, YAML files and stored runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .console import log

OLD_NAMES = {"signals_every": "val_every", "keep_every": "save_every", "init_bands": "init_channels"}
OLD_VALUES = {"flip": {"turns": "d4"}}


def current_names(values: Mapping[str, Any], warn: bool = False) -> dict[str, Any]:
    """Values of options under the names of this release; with `warn`, a note says which were old."""
    for old, new in OLD_NAMES.items():
        if warn and old in values:
            log(f"note: {old} is now {new}")
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def current_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a `run.json`, names and values in the spelling of this release."""
    values = current_names(stored)
    return {n: OLD_VALUES.get(n, {}).get(v, v) if isinstance(v, str) else v for n, v in values.items()}
