"""Teachers: whoever sees the whole input and tells, once a step, where it looked and what it made of each token."""

from .ema import EMALossPredictor, EMATeacher, ModelEma, Momentum, OnlineTeacher, reset_emas
from .frozen import FrozenTeacher, load_teacher
from .low_cost import EveryNSteps, LowResolutionTeacher, MeasuredLossTeacher, PredictedLossTeacher

__all__ = [
    "EMALossPredictor",
    "EMATeacher",
    "EveryNSteps",
    "FrozenTeacher",
    "LowResolutionTeacher",
    "MeasuredLossTeacher",
    "ModelEma",
    "Momentum",
    "OnlineTeacher",
    "PredictedLossTeacher",
    "load_teacher",
    "reset_emas",
]
