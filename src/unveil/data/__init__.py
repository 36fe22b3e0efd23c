"""Images and samples of several maps: opened by address, decoded, cut into views, batched, inspected; no models."""

from .aligned_folders import open_samples
from .decode import Unreadable
from .dense_dataset import DensePair, DenseSet
from .dense_layouts import StorageOptions, open_dense
from .inspection import AlignedInspection, Inspection, inspect_samples, inspect_source
from .loader import Loader, TooManyBroken
from .modality_config import Declared, declare
from .sources import SampleSource, Source, Subset, open_source
from .splits import hold_out, split
from .transforms import CenterView, Sample, View, center_view, random_view

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
