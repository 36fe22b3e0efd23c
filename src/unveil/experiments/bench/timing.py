"""The time of a step: forward, backward, update, in rounds of one step of every contender."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...modeling.optim import Optim, make_optimizer
from ...modeling.types import Batch
from ...training.trainer import Settings, Trainer
from .contenders import Ours
from .modes import How
from .profile import StepProfile, profile_step, record_traffic
from .work import TimedModel

K = TypeVar("K")
R = TypeVar("R")


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
    """A contender in training: its weights, its optimizer, and a timed step in any mode (`modes.MODES`).

    Ours are updated by the training loop's own `Trainer`, so that everything that a run computes is timed: the norm of
    the gradients and the check that they are finite (as part of the backward pass), the update, the averages. Where one
    step in `period` differs from the others, `period` of them are made and the mean is returned.
    """

    def __init__(self, model: TimedModel, batch: Batch, device: torch.device, period: int = 1):
        self.device, self.batch, self.period = device, batch, period
        self.model = model.to(device).train()
        self.optim = Optim(batch_size=len(batch), optimizer=model.optimizer)
        self.optimizer = make_optimizer(self.model, self.optim)
        self.settings: dict[str, Settings] = {}  # of modes in which a step is not computed at once
        self.updates: dict[str, Callable[[], object]] = {}
        self.marks = Marks(Clock(device))
        self.optimizer.register_step_pre_hook(lambda *_: self.marks.mark("update"))

    def step(self, mode: str) -> Seconds:
        """One update on the whole batch, timed; the mean over a period."""
        update = self.updates.get(mode) or self.updates.setdefault(mode, self._update(mode))
        made = [astuple(self._step(number, update)) for number in range(self.period)]
        return Seconds(*np.mean(made, axis=0).tolist())

    def _step(self, number: int, update: Callable[[], object]) -> Seconds:
        self.model.before_step(number)
        self.marks.start()
        update()
        return self.marks.seconds()

    def _update(self, mode: str) -> Callable[[], object]:
        how = How.of(mode)
        if not isinstance(self.model, Ours):
            forward = torch.compile(self.model, dynamic=False) if how.compile else self.model
            return partial(self._update_peer, self.marks.of_forward(forward), how)
        settings = Settings(str(self.device), how.precision, len(self.batch), how.compile, save_minutes=10, val_every=1)
        trainer = Trainer(self.model.model, self.optim, self.settings.get(mode, settings))
        trainer.optimizer = self.optimizer  # one set of moments for all modes
        trainer.forward = self.marks.of_forward(trainer.forward)
        return lambda: trainer.update(self.batch, self.optim.peak_lr)

    def _update_peer(self, forward: Callable[[Batch], Tensor], how: How) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            loss = forward(self.batch)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.peak_lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def profile(self, mode: str, how: How, peak: float, batches: Iterator[Batch] | None = None) -> StepProfile:
        """Where the time of a step goes in a mode that computes like `how`; it is given the next of `batches`, if any,
        and `peak` is in FLOPs per second.
        """
        module = self.model.model

        def step() -> float:
            began = time.perf_counter()
            if batches is not None:
                self.batch = next(batches).on(self.device)
            waited = time.perf_counter() - began
            self.step(mode)
            return waited

        self.step(how.precision)
        traffic = record_traffic(module, self.optimizer, lambda: self.step(how.precision))
        step()  # compiles, where the mode is that of no earlier step
        return profile_step(module, step, traffic, peak, self.device, self.period, how.compile)


class Marks:
    """The times at which the phases of a step begin: its forward passes, their backward passes, the update."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.phases: list[str] = []

    def start(self) -> None:
        self.clock.marks.clear()
        self.phases = []
        self.mark("forward")

    def mark(self, phase: str) -> None:
        self.clock.mark()
        self.phases.append(phase)

    def of_forward(self, forward: Callable[[Batch], R]) -> Callable[[Batch], R]:
        """A forward pass that says when it begins and ends."""

        def marked(batch: Batch) -> R:
            self.mark("forward")
            output = forward(batch)
            self.mark("backward")
            return output

        return marked

    def seconds(self) -> Seconds:
        """The seconds of each phase, up to now."""
        self.clock.mark()
        sums = dict.fromkeys(("forward", "backward", "update"), 0.0)
        for phase, seconds in zip(self.phases, self.clock.seconds(), strict=True):
            sums[phase] += seconds
        return Seconds(**sums)


def seconds_of(act: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def interleave(
    steps: Mapping[K, Callable[[], R]], rounds: int, warmup: int, after_round: Callable[[int, int], None]
) -> dict[K, list[R]]:
    """What each step measures in rounds of one of each, always in this order; the first `warmup` rounds do not count.

    So drifts, such as heat, clock rates and other programs, affect all alike, and a ratio within a round cancels them.
    """
    times: dict[K, list[R]] = {key: [] for key in steps}
    for number in range(-warmup, rounds):
        for key, step in steps.items():
            measured = step()
            if number >= 0:
                times[key].append(measured)
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
