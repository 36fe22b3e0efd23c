"""A model made visible: where it and its teachers look, what they hide, what it makes of the rest."""

from .answers import alone, answers
from .gazes import DRAWS, Gazes, gazes_of, masks_of
from .glance import Glance, glance
from .panels import Shown, panels, sheet
from .viewing import Viewer, viewers

__all__ = [
    "DRAWS",
    "Gazes",
    "Glance",
    "Shown",
    "Viewer",
    "alone",
    "answers",
    "gazes_of",
    "glance",
    "masks_of",
    "panels",
    "sheet",
    "viewers",
]
