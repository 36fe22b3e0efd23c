"""Images that the project renders itself: toy-like things in textured surroundings, with depth, classes and a label."""

from __future__ import annotations

from ...data.modality_config import Declared
from ...data.sources import Source
from .raycast import FAR, Scene, render
from .samples import SceneSamples, of_scenes
from .source import SceneSource, parse
from .things import CLASSES
from .world import SEMANTIC_CLASSES

__all__ = [
    "CLASSES",
    "FAR",
    "SEMANTIC_CLASSES",
    "Scene",
    "SceneSamples",
    "SceneSource",
    "open_scenes",
    "parse",
    "render",
]


def open_scenes(address: str, declared: tuple[Declared, ...]) -> Source:
    """The entry point `scenes` of `unveil.sources`: images, or samples of the declared maps."""
    source = parse(address)
    return SceneSamples(source, of_scenes(declared)) if declared else source
