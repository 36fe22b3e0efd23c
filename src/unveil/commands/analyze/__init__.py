"""The verb `analyze`: numbers of what goes on in the model of a run."""

from .attention import analyze_attention, analyze_features
from .blocks import analyze_blocks
from .masks import analyze_masks

__all__ = ["analyze_attention", "analyze_blocks", "analyze_features", "analyze_masks"]
