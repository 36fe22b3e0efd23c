"""Images and samples of several maps: opened by address, decoded, cut into views, batched, inspected; no models."""

from .aligned_folders import open_samples
from .decode import Unreadable
from .dense_dataset import DensePair, DenseSet
from .dense_layouts import StorageOptions, open_dense
from .inspect_aligned import AlignedInspection, inspect_samples
from .inspect_images import Inspection, inspect_source
from .loader import Loader, TooManyBroken
from .modality_config import Declared, declare
from .samples import Sample, SampleSource
from .sources import Source, Subset, open_source, split
from .splits import hold_out
from .transforms import CenterView, View, center_view, random_view

__all__ = [
    "AlignedInspection",
    "CenterView",
    "Declared",
    "DensePair",
    "DenseSet",
    "Inspection",
    "Loader",
    "Sample",
    "SampleSource",
    "Source",
    "StorageOptions",
    "Subset",
    "TooManyBroken",
    "Unreadable",
    "View",
    "center_view",
    "declare",
    "hold_out",
    "inspect_samples",
    "inspect_source",
    "open_dense",
    "open_samples",
    "open_source",
    "random_view",
    "split",
]
