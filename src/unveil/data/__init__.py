"""The data room: sources by address, decoding, views, batches and their inspection. It knows no model."""

from .aligned_folders import open_samples
from .decode import Unreadable
from .inspect_images import Inspection, inspect_source
from .loader import Loader, TooManyBroken
from .modality_config import Declared, declare
from .samples import Sample, SampleSource
from .sources import Source, Subset, open_source, split
from .transforms import View, center_view, random_view

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
