"""Protocols on frozen features: what was learned, in numbers, beside what raw pixels and no training give.

The room knows features, not recipes. A protocol is a file with a function of its own name (`knn.py`: `knn`).
"""

from .baselines import RawPixels
from .features import FeatureEncoder, Features, Pool, extract
from .results import Result, table, write_results
from .run import protocols, run_protocols
from .signals import feature_std, rankme

__all__ = [
    "FeatureEncoder",
    "Features",
    "Pool",
    "RawPixels",
    "Result",
    "extract",
    "feature_std",
    "protocols",
    "rankme",
    "run_protocols",
    "table",
    "write_results",
]
