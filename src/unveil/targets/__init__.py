"""Targets: the truth at every token. One contract: `(Batch, Observations) -> values B N T, valid`.

`valid` broadcasts to the values: 0 where there is no truth, 1 where there is.
"""

from .pixels import NORM_PIX_EPS, Pixels, patch_statistics
from .target import Target, Truth

__all__ = ["NORM_PIX_EPS", "Pixels", "Target", "Truth", "patch_statistics"]
