"""A model made visible: where it and its teachers look, what they hide, what it makes of the rest."""

from .glance import Glance, glance
from .panels import Shown, panels, sheet
from .viewing import Viewer, viewers

__all__ = ["Glance", "Shown", "Viewer", "glance", "panels", "sheet", "viewers"]
