"""A run and its clock: a schedule that can be shortened, so that a run ends when it was to end, and why it is slow."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from ..runs.console import duration
from ..runs.load import LoadMeter

WINDOW = 20  # updates whose mean time is that of the coming ones
AHEAD, LATE_SECONDS = 0.1, 5.0  # a schedule is changed where it would miss its end by both, as a share and in seconds
SLOW, SLOW_SECONDS = 2.0, 10.0  # times the planned time, for so many seconds at least, is worth a message
PATIENCE, PATIENCE_SECONDS = 0.1, 60.0  # share of the time, or seconds without one, in which reading anew says little
WAITS, PAUSES = 0.3, 0.3  # shares of the time, of waiting for data and of validation, from which they are causes


@dataclass(frozen=True)
class Plan:
    """What was said before training: the seconds of an update; `budget` is the seconds of all training, where
    `--minutes` or its default has set the epochs, None where they were given."""

    update_seconds: float
    budget: float | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Plan | None:
        """The plan in the content of a `run.json`; None in one of an earlier release."""
        plan = metadata.get("plan") or {}
        return cls(plan["update_seconds"], plan.get("budget")) if "update_seconds" in plan else None


class Schedule:
    """The steps at which stages end, and where a step is in the schedule that was planned.

    A run that is shortened goes through the same schedule in longer strides, so that the learning rate and all that
    depends on progress end where they were to end.
    """

    def __init__(self, ends: Sequence[int]):
        self.planned, self.ends = tuple(ends), list(ends)
        self.step, self.position, self.stride = 0, 0.0, 1.0  # where it was changed last

    @property
    def total(self) -> int:
        """The number of updates of the whole run."""
        return self.ends[-1]

    def at(self, step: int, stage: int) -> float:
        """The planned step that a step of a stage stands for."""
        return min(self.position + (step - self.step) * self.stride, self.planned[stage])

    def change(self, step: int, stage: int, steps_left: int) -> None:
        """Go through what is left of the plan in so many steps, of which every stage has one at least."""
        self.position, self.step = self.at(step, stage), step
        steps_left = max(steps_left, len(self.planned) - stage)
        self.stride = (self.planned[-1] - self.position) / steps_left
        end = step
        for index in range(stage, len(self.planned)):
            reached = math.ceil((self.planned[index] - self.position) / self.stride - 1e-6)
            end = self.ends[index] = max(end + 1, step + reached)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of it; empty while nothing was changed."""
        if not self.step:
            return {}
        return {"ends": list(self.ends), "step": self.step, "position": self.position, "stride": self.stride}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the schedule of a checkpoint."""
        if state:
            self.ends = list(state["ends"])
            self.step, self.position, self.stride = state["step"], state["position"], state["stride"]


class Pace:
    """How long updates take, against the plan: the updates that fit in the time, and one message where it is long."""

    def __init__(
        self,
        plan: Plan | None,
        is_compiled: bool,
        meter: Callable[[], LoadMeter] = LoadMeter,
        now: Callable[[], float] = time.monotonic,
    ):
        self.plan, self.is_compiled, self.now = plan, is_compiled, now
        self.updates: deque[float] = deque(maxlen=WINDOW)  # seconds of the last ones, with the wait for their data
        self.meter = meter() if plan else None
        self.compiling = self.waited = self.updating = 0.0
        self.began = self.mark = now()  # of the session, and of the updates that are to be added
        self.waited_by = 0.0  # seconds that the loader had waited by the mark
        self.is_first, self.has_warned = True, False  # update of a stage, in which a compiled step is compiled

    def start_stage(self, waited: float) -> None:
        """The first update comes next; `waited` are the seconds that the loader has waited for data by now."""
        self.is_first, self.mark, self.waited_by = True, self.now(), waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Validation and saving are no part of an update."""
        left = self.now()
        yield
        self.mark += self.now() - left

    def add(self, count: int, waited: float) -> None:
        """So many updates have ended, by which the loader has waited so many seconds."""
        now = self.now()
        seconds = now - self.mark
        if self.is_first and self.is_compiled:
            self.compiling += seconds
        else:
            self.updates.extend([seconds / count] * min(count, WINDOW))
        self.is_first = False
        self.waited, self.updating = self.waited + waited - self.waited_by, self.updating + seconds
        self.mark, self.waited_by = now, waited

    @property
    def seconds(self) -> float:
        """The time of an update: the mean without the longest, which may have waited for something once."""
        times = sorted(self.updates)
        return mean(times[:-1] if len(times) > 3 else times)

    def tells(self, elapsed: float, is_first_pass: bool) -> bool:
        """Whether the updates so far say how long the coming ones take: not while images are read for the first time,
        where memory will serve them, unless that takes long.
        """
        budget = self.plan.budget if self.plan else None
        return not is_first_pass or elapsed > (PATIENCE_SECONDS if budget is None else PATIENCE * budget)

    def fitting(self, elapsed: float, planned_left: int, steps_left: int) -> int | None:
        """How many more updates fit in the budget, at most those that were planned; None where the schedule may stay.

        `elapsed` are the seconds of training over all sessions, validation and saving included; `planned_left` counts
        the steps that are left of all that were planned, `steps_left` those of the schedule as it is now.
        """
        if self.plan is None or self.plan.budget is None or not self.updates:
            return None
        late = max(LATE_SECONDS, AHEAD * self.plan.budget)
        if self.updating < late / 2:  # the first updates of a run are slower than the others
            return None
        share = max(0.1, self.updating / max(self.updating, self.now() - self.began))  # the rest is validation
        left, needed = self.plan.budget - elapsed, steps_left * self.seconds / share
        if abs(needed - left) < late:
            return None
        fit = max(1, min(planned_left, round(left * share / self.seconds)))
        return None if fit == steps_left else fit

    def warning(self, planned: int, total: int) -> str | None:
        """One sentence where updates take several times as long as planned, or the run was shortened: what is slow,
        why, and what to do. None where that is not so, and after the first time."""
        if self.plan is None or self.meter is None or self.has_warned or not self.updates:
            return None
        times = self.seconds / max(1e-9, self.plan.update_seconds)
        is_slow = times >= SLOW and self.updating >= SLOW_SECONDS
        if not is_slow and total == planned:
            return None
        self.has_warned = True
        text = f"note: an update takes {_seconds(self.seconds)}, {times:.1f} times as long as before training"
        if total < planned:
            text += f"; {total} updates instead of {planned} fit in {duration(self.plan.budget or 0.0)}"
        return f"{text}: {'; '.join(self._causes()) or UNKNOWN}"

    def _causes(self) -> list[str]:
        assert self.meter is not None
        causes, whole = [], max(1e-9, self.now() - self.began)
        if self.compiling > WAITS * whole:
            causes.append(f"compiling the step took {duration(self.compiling)}; --compile off does without")
        if self.waited > WAITS * self.updating:
            causes.append(
                f"images are waited for {self.waited / self.updating:.0%} of the time; give more --workers, or smaller"
                " images on a local disk"
            )
        if whole - self.updating > PAUSES * whole:
            causes.append(f"validation and saving take {1 - self.updating / whole:.0%} of the time; raise --val-every")
        return [*causes, *self.meter.causes(torch.get_num_threads())]


UNKNOWN = "no cause is seen; the processor may run at a lower clock than when the step was measured"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
