"""What protocols that judge every pixel share: samples and their views, heads, training, windows, measures."""

from .encoder import DenseEncoder, check_dense
from .heads import HEADS, HeadName
from .losses import Truth
from .metrics import Confusion, DepthErrors
from .model import DenseModel
from .task import DenseTask
from .training import DenseTraining, Schedule, Trainer, fitted

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
