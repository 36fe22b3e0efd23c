"""Threads of a computation on the CPU: as many as pay, on a machine that other programs use too."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from .hardware import num_cores

TRIAL_SECONDS = 20.0  # of training before the first trial of the other number of threads, and between two of them
TRIAL_SHARE = 0.05  # of the time that trials take at most
GAIN = 0.8  # of the time of a step, below which the other number of threads is taken
WINDOW = 5  # steps whose median is compared


@contextmanager
def use_threads(threads: int | None = None) -> Iterator[None]:
    """Compute with so many threads; by default with torch's own number, but no more than cores that may be used.

    (torch counts the cores of the machine, not the share of a container, and its threads wait for each other.)
    The number is as before in the end, whatever has changed it.
    """
    before = torch.get_num_threads()
    if threads is not None or ("OMP_NUM_THREADS" not in os.environ and before > num_cores()):
        torch.set_num_threads(threads or num_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class AdaptiveThreads:
    """Computes steps with all threads, or with one while other programs keep the cores busy.

    The threads of an operation wait for the last of them. Where another program has its core, that takes a time slice
    of the system in every operation: a step of a small model then takes ten times as long with two threads as with
    one. So two steps are computed with the other number of threads from time to time, of which the second is timed,
    and the faster number is kept. Rounding depends on the number; nothing is tried within the first
    `TRIAL_SECONDS`, nor where `most`, the number of all threads, is 1 or 0.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.perf_counter):
        self.most, self.now = most, now
        self.recent: deque[float] = deque(maxlen=WINDOW)  # seconds of the last steps with the present number
        self.next_trial = now() + TRIAL_SECONDS
        self.trial = 0  # which of the two steps of a trial comes next; 0 outside of one
        self.trial_began = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of the computation, which is timed; it may be the step of a trial."""
        began = self.now()
        yield
        if self.most > 1:
            self._after(self.now() - began)

    def _after(self, seconds: float) -> None:
        if self.trial == 1:  # this step set up what depends on the number of threads
            self.trial = 2
        elif self.trial == 2:
            self._decide(seconds)
        else:
            self.recent.append(seconds)
            if len(self.recent) == WINDOW and self.now() >= self.next_trial:
                self.trial, self.trial_began = 1, self.now()
                self._switch()

    def _decide(self, seconds: float) -> None:
        if seconds < GAIN * median(self.recent):
            self.recent.clear()
        else:
            self._switch()
        took = self.now() - self.trial_began
        self.trial, self.next_trial = 0, self.now() + max(TRIAL_SECONDS, took / TRIAL_SHARE)

    def _switch(self) -> None:
        torch.set_num_threads(1 if torch.get_num_threads() > 1 else self.most)
