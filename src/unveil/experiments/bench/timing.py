"""The time of a step: forward, backward, update, in rounds of one step of every contender."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from ...modeling.optim import Optim, adamw
from ...modeling.types import Batch
from .contenders import TimedModel

K = TypeVar("K")
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Seconds:
    """The seconds of the phases of one training step."""

    forward: float
    backward: float
    update: float

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.update


class Clock:
    """Time stamps in the stream of work and the seconds between them.

    On CUDA a mark is an event in the stream, so the device does not wait between the phases of a step; elsewhere it is
    the time at which all work so far is done.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []
        self._wait()

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
        else:
            self._wait()
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The time from each mark to the next."""
        self._wait()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


class Stepper:
    """A contender in training: its weights, its AdamW, and a timed step.

    Where one step in `period` differs from the others, `period` of them are made and the mean is returned.
    """

    def __init__(self, model: TimedModel, batch: Batch, device: torch.device, compile: bool = False, period: int = 1):
        self.device, self.batch, self.period = device, batch, period
        self.model = model.to(device).train()
        optim = Optim(batch_size=len(batch))
        self.optimizer = adamw(self.model, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.peak_lr
        self.forward: Callable[[Batch], Any] = torch.compile(self.model, dynamic=False) if compile else self.model

    def step(self, precision: Precision) -> Seconds:
        """One update on the whole batch, timed; the mean over a period."""
        made = [astuple(self._step(number, precision)) for number in range(self.period)]
        return Seconds(*np.mean(made, axis=0).tolist())

    def _step(self, number: int, precision: Precision) -> Seconds:
        self.model.before_step(number)
        clock = Clock(self.device)
        clock.mark()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = self.forward(self.batch)
        clock.mark()
        loss.backward()
        clock.mark()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step()
        clock.mark()
        return Seconds(*clock.seconds())


def interleave(
    steps: Mapping[K, Callable[[], Seconds]], rounds: int, warmup: int, after_round: Callable[[int, int], None]
) -> dict[K, list[Seconds]]:
    """Rounds in which each step is made once, always in this order; the first `warmup` of them do not count.

    So drifts, such as heat, clock rates and other programs, affect all alike, and a ratio within a round cancels them.
    """
    times: dict[K, list[Seconds]] = {key: [] for key in steps}
    for number in range(-warmup, rounds):
        for key, step in steps.items():
            seconds = step()
            if number >= 0:
                times[key].append(seconds)
        after_round(number + 1, rounds)
    return times


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of a measurement made in every round."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of one or more numbers."""
    return Quartiles(*np.quantile(values, (0.5, 0.25, 0.75)).tolist())


def speed(base: Sequence[Seconds], other: Sequence[Seconds]) -> Quartiles:
    """How many times as fast as the base another is: the ratio of their steps in each round."""
    return quartiles([b.step / o.step for b, o in zip(base, other, strict=True)])
