"""Teachers: whoever sees the whole input and tells, once a step, where it looked and what it made of each token."""

from .ema import Average, EMALossPredictor, EMATeacher, Momentum, OnlineTeacher, begin_averages
from .frozen import FrozenTeacher, load_teacher
from .low_cost import EveryNSteps, LowResolutionTeacher, MeasuredLossTeacher, PredictedLossTeacher

__all__ = [
    "Average",
    "EMALossPredictor",
    "EMATeacher",
    "EveryNSteps",
    "FrozenTeacher",
    "LowResolutionTeacher",
    "MeasuredLossTeacher",
    "Momentum",
    "OnlineTeacher",
    "PredictedLossTeacher",
    "begin_averages",
    "load_teacher",
]
