"""Teachers: whoever sees the whole input and tells, once a step, where it looked and what it made of each token."""

from .ema import Average, EMALossPredictor, EMATeacher, Momentum, OnlineTeacher, begin_averages
from .frozen import FrozenTeacher, load_teacher
from .low_cost import Coarse, ComplementaryErrors, ForeseenErrors, Sometimes

__all__ = [
    "Average",
    "Coarse",
    "ComplementaryErrors",
    "EMALossPredictor",
    "EMATeacher",
    "ForeseenErrors",
    "FrozenTeacher",
    "Momentum",
    "OnlineTeacher",
    "Sometimes",
    "begin_averages",
    "load_teacher",
]
