"""The verb `analyze`: numbers on the attention, masks, decoder blocks and layers of a run."""

from .attention import analyze_attention
from .blocks import analyze_blocks
from .features import analyze_features
from .masks import analyze_masks

__all__ = ["analyze_attention", "analyze_blocks", "analyze_features", "analyze_masks"]
