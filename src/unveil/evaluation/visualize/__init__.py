"""A model made visible: where it and its teachers look, what they hide, what it makes of the rest."""

from .colormaps import Viewer, viewers
from .panels import Shown, panels, sheet
from .samples import Glance, glance

__all__ = ["Glance", "Shown", "Viewer", "glance", "panels", "sheet", "viewers"]
