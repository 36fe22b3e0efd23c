"""Images that the project renders itself: toy-like things in textured surroundings, with depth, classes and a label."""

from .raycast import FAR, Scene, render
from .source import SceneSource, parse
from .things import CLASSES
from .world import SEMANTIC_CLASSES

__all__ = ["CLASSES", "FAR", "SEMANTIC_CLASSES", "Scene", "SceneSource", "parse", "render"]
