"""Protocols: what was learned, in numbers, beside what raw pixels and no training give.

The room knows features and encoders, not recipes. A protocol is a file with a function of its own name (`knn.py`:
`knn`).
"""

from .baselines import RawPixels
from .dense import DenseTask
from .dense.restorer import RestoringTask
from .dense_run import dense_tasks, run_dense, run_tasks
from .dials import dials_of, protocols, work_of
from .features import FeatureEncoder, Features, Pool, extract
from .kept import Kept
from .results import Result, parts_table, table, write_results
from .run import run_protocols
from .signals import feature_std, rankme
from .task import open_sets
from .trainable import TrainableEncoder

__all__ = [
    "DenseTask",
    "FeatureEncoder",
    "Features",
    "Kept",
    "Pool",
    "RawPixels",
    "RestoringTask",
    "Result",
    "TrainableEncoder",
    "dense_tasks",
    "dials_of",
    "extract",
    "feature_std",
    "open_sets",
    "parts_table",
    "protocols",
    "rankme",
    "run_dense",
    "run_protocols",
    "run_tasks",
    "table",
    "work_of",
    "write_results",
]
