"""Teachers: encoders that observe the whole input once per step. One contract: `observe(batch, tokens, student)`."""

from .ema import EMALossPredictor, EMATeacher, ModelEma, Momentum, OnlineTeacher, reset_emas
from .frozen import FrozenTeacher, frozen_teachers, load_teacher
from .low_cost import DistilledAttention, EveryNSteps, LowResolutionTeacher, MeasuredLossTeacher, PredictedLossTeacher
