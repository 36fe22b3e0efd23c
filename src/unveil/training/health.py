"""Spikes and divergence of a training, from the loss and the gradient norm of every step.

Everything is a function of these numbers and of their order: a run that was stopped, with the state that its checkpoint
holds, comes to the same findings. Thresholds are wide: what they name is no noise.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

WINDOW, FEWEST = 100, 20  # steps that a value is compared with, and how many of them at least
SPIKE, CALM = 6.0, 3.0  # robust z-scores from which a spike begins, and below which it is over
LEAST_SIGMA = 0.05  # of a logarithm: below, a loss that hardly varies would spike at every odd batch
LINEAR = 0.01  # of the first value, within which the signed logarithm is linear: losses may be 0 or negative
MAX_SKIPPED = 20  # updates in a row that are not finite
MOST_SKIPPED = 50  # of the last WINDOW updates
FAR, PATIENCE = 4.0, 20  # times the first loss of a stage, for so many steps, is divergence
LOST = 0.9  # of the first loss, reached again in a spike of twice the level before that lasts WINDOW steps, is another


@dataclass(frozen=True)
class Trouble:
    """Why training cannot go on from here: noticed after `step`, begun with step `began` (both counted from 1)."""

    step: int
    began: int
    why: str
    is_finite: bool


class Curve:
    """One quantity over the steps of a stage: its robust z-scores by median and MAD, and its spikes.

    A spike begins with a value above `SPIKE` and ends with one below `CALM`; its values are not compared with. One
    that lasts `WINDOW` steps is a new level.
    """

    def __init__(self, state: Mapping[str, Any] | None = None):
        state = state or {}
        self.first: float | None = state.get("first")
        self.calm = deque[float](state.get("calm", ()), maxlen=WINDOW)
        self.away = list[float](state.get("away", ()))
        self.since = int(state.get("since", 0))  # the first step of a spike that is not over
        self._sorted = sorted(self.calm)

    @property
    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint, as JSON holds it."""
        return {"first": self.first, "calm": list(self.calm), "away": self.away, "since": self.since}

    @property
    def middle(self) -> float:
        """The median that values are compared with."""
        return median(self._sorted)

    def add(self, step: int, value: float) -> float:
        """Add the finite value of a step. Returns its z-score where a spike begins with it, else 0."""
        if self.first is None:
            self.first = value
        x = signed_log(value, self.first)
        if len(self.calm) < FEWEST:
            self._append(x)
            return 0.0
        above = x - self._sorted[len(self._sorted) // 2]
        if not self.since and above <= SPIKE * LEAST_SIGMA:  # nearly always, and quick
            self._append(x)
            return 0.0
        z = (x - self.middle) / self._sigma()
        if not self.since and z > SPIKE:
            self.since, self.away = step, [x]
            return z
        if z <= (CALM if self.since else SPIKE):
            self.since, self.away = 0, []
            self._append(x)
            return 0.0
        self.away.append(x)
        return 0.0

    def accept(self) -> None:
        """Take the values of a spike that lasts as the new level."""
        self.calm, self._sorted = deque(self.away[-WINDOW:], maxlen=WINDOW), sorted(self.away[-WINDOW:])
        self.since, self.away = 0, []

    def _append(self, x: float) -> None:
        if len(self.calm) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self.calm[0])]
        self.calm.append(x)
        insort(self._sorted, x)

    def _sigma(self) -> float:
        middle = self.middle
        return max(LEAST_SIGMA, 1.4826 * median(abs(x - middle) for x in self._sorted))


def signed_log(value: float, first: float) -> float:
    """The logarithm of a value in units of the first one, continued through zero: asinh."""
    return math.asinh(value / (LINEAR * abs(first) or 1.0))


class Health:
    """Reads the loss, gradient norm and skips of every step; `trouble` is the first reason to go back, if any."""

    def __init__(self, state: Mapping[str, Any] | None = None):
        state = state or {}
        self.loss, self.norm = Curve(state.get("loss")), Curve(state.get("norm"))
        self.far = int(state.get("far", 0))  # steps far above the first loss, less those that were not
        self.far_since = int(state.get("far_since", 0))
        self.in_a_row = int(state.get("in_a_row", 0))
        self.recent = deque[bool](state.get("recent", ()), maxlen=WINDOW)  # which updates were skipped
        self.spikes = int(state.get("spikes", 0))
        self.trouble = Trouble(**state["trouble"]) if state.get("trouble") else None

    @property
    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint, as JSON holds it."""
        return {
            "loss": self.loss.state,
            "norm": self.norm.state,
            **{"far": self.far, "far_since": self.far_since, "in_a_row": self.in_a_row},
            **{"recent": list(map(int, self.recent)), "spikes": self.spikes},
            "trouble": asdict(self.trouble) if self.trouble else None,
        }

    @property
    def is_calm(self) -> bool:
        """Whether nothing is wrong at this step, so that a checkpoint of it is good to go back to."""
        return not (
            self.trouble or self.loss.since or self.far or self.in_a_row or sum(self.recent) > MOST_SKIPPED // 5
        )

    def start_stage(self) -> None:
        """Another model with other losses comes next."""
        self.loss, self.norm, self.far, self.far_since = Curve(), Curve(), 0, 0

    def add(self, step: int, losses: Sequence[float], norm: float, skipped: bool) -> dict[str, Any] | None:
        """Add a step. Returns an entry of `metrics.jsonl` where a spike of the loss or the gradient begins with it."""
        self.recent.append(skipped)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            self._check_skipped(step)
            return None
        loss = sum(losses)
        scores = {"loss": self.loss.add(step, loss), "gradient norm": self.norm.add(step, norm)}
        self._check_loss(step, loss)
        if len(self.norm.away) >= WINDOW:
            self.norm.accept()
        if not any(scores.values()):
            return None
        self.spikes += 1
        of = max(scores, key=lambda name: scores[name])
        return {"kind": "spike", "step": step, "of": of, "z": scores[of], "loss": loss, "grad_norm": norm}

    def _check_skipped(self, step: int) -> None:
        many = sum(self.recent)
        if self.in_a_row >= MAX_SKIPPED:
            self._trouble(step, step - self.in_a_row + 1, f"{self.in_a_row} updates in a row were not finite", False)
        elif many >= MOST_SKIPPED:
            began = step - len(self.recent) + 1 + list(self.recent).index(True)
            self._trouble(step, began, f"{many} of the last {len(self.recent)} updates were not finite", False)

    def _check_loss(self, step: int, loss: float) -> None:
        first = self.loss.first or 0.0
        if loss - first >= (FAR - 1) * abs(first) and loss != first:
            self.far_since = self.far_since or step
            self.far += 1
        elif self.far:
            self.far -= 1
            self.far_since = self.far_since if self.far else 0
        if self.far >= PATIENCE:
            text = f"the loss rose from {first:.3g} to {loss:.3g} and stayed there for {self.far} updates"
            self._trouble(step, self.far_since, text, True)
        away = self.loss.away
        if len(away) < WINDOW:
            return
        level, before = median(away[-PATIENCE:]), self.loss.middle
        if level - before >= math.log(2) and level >= signed_log(LOST * first, first) and first > 0:
            unit = LINEAR * abs(first)
            was, now = (unit * math.sinh(x) for x in (before, level))
            text = f"the loss rose from {was:.3g} to {now:.3g}, that of the start, for {WINDOW} updates"
            self._trouble(step, self.loss.since, text, True)
        self.loss.accept()

    def _trouble(self, step: int, began: int, why: str, is_finite: bool) -> None:
        self.trouble = self.trouble or Trouble(step, began, why, is_finite)
