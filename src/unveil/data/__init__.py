"""The data room: sources by address, decoding, views, batches and their inspection. It knows no model."""

from .aligned import open_samples
from .declaration import Declared, declare
from .decode import Unreadable
from .inspection import Inspection, inspect_source
from .loader import Loader, TooManyBroken
from .samples import Sample, SampleSource
from .sources import Source, Subset, open_source, split
from .views import View, center_view, random_view

__all__ = [
    "Declared",
    "Inspection",
    "Loader",
    "Sample",
    "SampleSource",
    "Source",
    "Subset",
    "TooManyBroken",
    "Unreadable",
    "View",
    "center_view",
    "declare",
    "inspect_source",
    "open_samples",
    "open_source",
    "random_view",
    "split",
]
