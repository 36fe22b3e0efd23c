"""The verdict of a check, and what checks read from a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .run import RunRecord

LEVELS = ("problem", "warning", "note", "ok")
ENOUGH_STEPS = 100
ENOUGH_ROWS = 20


@dataclass(frozen=True)
class Verdict:
    """The result of a check: its level (one of LEVELS), a sentence with the numbers, and advice."""

    level: str
    sentence: str
    advice: str = ""


def losses_of(run: RunRecord) -> Float[np.ndarray, " n"]:
    """The finite losses of the log."""
    loss = np.array([s.loss for s in run.steps], np.float64)
    return loss[np.isfinite(loss)]


def ends_of(loss: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The loss at the start and at the end: means over the first and the last tenth."""
    tenth = max(1, len(loss) // 10)
    return float(loss[:tenth].mean()), float(loss[-tenth:].mean())


def is_long_enough(run: RunRecord) -> bool:
    """Whether the log is long enough to assess its loss curve."""
    return bool(run.steps) and run.steps[-1].step >= ENOUGH_STEPS and len(losses_of(run)) >= ENOUGH_ROWS
