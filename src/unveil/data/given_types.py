"""What `data=` takes in Python, as a type: a module without torch, so that `--help` does not wait for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol


class Items(Protocol):
    """What is read by number: a list, an array, a tensor, a map-style torch Dataset, a Hugging Face Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


Data = str | os.PathLike[str] | Items | Mapping[str, Items]  # an address, or what `given.address_of` takes
