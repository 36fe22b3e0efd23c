"""Targets: the truth at every token. One contract: `(Batch, Observations) -> values B N T, valid`.

`valid` broadcasts to the values: 0 where there is no truth, 1 where there is.
"""

from .classes import Classes
from .features import Features
from .hog import HOG
from .pixels import NORM_PIX_EPS, Pixels, patch_statistics
from .target import Target, TargetValues

__all__ = ["HOG", "NORM_PIX_EPS", "Classes", "Features", "Pixels", "Target", "TargetValues", "patch_statistics"]
