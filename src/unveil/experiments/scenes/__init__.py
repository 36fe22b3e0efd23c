"""Images that the project renders itself: toy-like things in textured surroundings, with depth, classes and a label."""

from .raycast import FAR, Scene, render
from .source import SceneSamples, SceneSource, open_scenes, parse, render_scenes
from .things import CLASSES
from .world import SEMANTIC_CLASSES
