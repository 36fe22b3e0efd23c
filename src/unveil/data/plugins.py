"""Sources of other packages: the entry point `name` of the group `unveil.sources` opens the address `name:...`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from .modality_config import Declared

if TYPE_CHECKING:
    from .sources import Source

GROUP = "unveil.sources"

Opener = Callable[[str, tuple[Declared, ...]], "Source"]


@cache
def registered() -> dict[str, EntryPoint]:
    """The entry points of the group by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def opener_of(address: str) -> Opener | None:
    """What opens an address whose first word is a registered name; None for any other address.

    It is called with the address and the declared modalities; with none it returns a source of images, else a
    `SampleSource`.
    """
    point = registered().get(address.partition(":")[0])
    return None if point is None else point.load()
