"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def user_path(address: str | Path) -> Path:
    """The path of an address, `~` and `~name` expanded. Raises ValueError for a user whose home is not known."""
    try:
        return Path(address).expanduser()
    except RuntimeError as error:
        home = Path(address).parts[0]
        raise ValueError(f"{str(address)!r}: there is no home folder for {home}; write the whole path") from error
