"""What protocols with a label per pixel share: samples and their views, heads, training, windows, metrics."""

from .encoder import DenseEncoder, check_dense
from .heads import HEADS, HeadName
from .losses import DenseTarget
from .metrics import Confusion, DepthErrors
from .model import DenseModel
from .training import DenseTrainer, DenseTraining, Schedule, fitted

__all__ = [
    "HEADS",
    "Confusion",
    "DenseEncoder",
    "DenseModel",
    "DenseTarget",
    "DenseTrainer",
    "DenseTraining",
    "DepthErrors",
    "HeadName",
    "Schedule",
    "check_dense",
    "fitted",
]
