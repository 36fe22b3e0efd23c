"""Teachers: whoever sees the whole input and tells, once a step, where it looked and what it made of each token."""

from .frozen import FrozenTeacher, load_teacher
from .guidance import Coarse, ComplementaryErrors, ForeseenErrors, Sometimes
from .momentum import Average, EMALossPredictor, EMATeacher, Momentum, OnlineTeacher, begin_averages

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
