"""What protocols that judge every pixel share: samples and their views, heads, training, windows, measures."""

from .encoder import DenseEncoder, check_dense
from .heads import HEADS, HeadName
from .measures import Confusion, DepthErrors
from .model import DenseModel
from .task import DenseTask
from .training import DenseTraining, Schedule, Trainer, fitted
from .truth import Truth

__all__ = [
    "HEADS",
    "Confusion",
    "DenseEncoder",
    "DenseModel",
    "DenseTask",
    "DenseTraining",
    "DepthErrors",
    "HeadName",
    "Schedule",
    "Trainer",
    "Truth",
    "check_dense",
    "fitted",
]
