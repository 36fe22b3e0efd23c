"""The verbs `look` and `analyze`: a run folder becomes pictures and numbers of what goes on in the model."""

from .analyze import analyze_attention, analyze_features
from .blocks import analyze_blocks
from .masks import analyze_masks
from .sheet import look

__all__ = ["analyze_attention", "analyze_blocks", "analyze_features", "analyze_masks", "look"]
