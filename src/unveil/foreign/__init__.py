"""Weights of other projects: the one room that knows their names.

Reads safetensors, or `.pth` through torch's weights-only loader with an allow-list, so that no pickle runs code;
whatever is loaded comes with a table of keys.
"""

from .files import State, read_weights
from .keys import KeyReport, load_weights
from .mae import translate

__all__ = ["KeyReport", "State", "load_weights", "read_weights", "translate"]
