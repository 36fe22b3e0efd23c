"""Images and samples of several maps: opened by address, decoded, cut into views, batched, inspected; no models.

`unveil.data.open(address)` is a map-style `torch.utils.data.Dataset`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import ImageDataset, open

__all__ = ["ImageDataset", "open"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.dataset"), name)  # torch is imported when it is used
