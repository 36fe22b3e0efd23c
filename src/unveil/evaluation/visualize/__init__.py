"""Pictures of a model: its attention, its masks and its predictions."""

from .colormaps import MapRenderer, map_renderers
from .panels import MapPictures, draw_samples, sample_pictures
from .samples import SampleViews, load_samples

__all__ = [
    "MapPictures",
    "MapRenderer",
    "SampleViews",
    "draw_samples",
    "load_samples",
    "map_renderers",
    "sample_pictures",
]
