"""The data room: sources by address, decoding, views, batches and their inspection. It knows no model."""

from .decode import Unreadable
from .inspection import Inspection, inspect_source
from .loader import Loader, TooManyBroken
from .sources import Source, Subset, open_source, split
from .views import View, center_view, random_view

__all__ = [
    "Inspection",
    "Loader",
    "Source",
    "Subset",
    "TooManyBroken",
    "Unreadable",
    "View",
    "center_view",
    "inspect_source",
    "open_source",
    "random_view",
    "split",
]
