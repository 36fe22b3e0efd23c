"""What stops a run in order, with everything saved: a signal, or that nobody reads its output any more."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from ..runs.console import is_rank_zero
from .distributed import SINGLE_PROCESS, Group

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # SIGHUP: the terminal was closed, or its connection lost


class Stop(threading.Event):
    """An event that says which signal has set it."""

    number = 0

    def by(self, number: int) -> None:
        """Set the event by a signal, of which the first counts."""
        self.number = self.number or number
        self.set()


class _Watched:
    """A stream that stops the run where it cannot be written any more, instead of raising an error amid a step."""

    def __init__(self, stream: TextIO, stop: Stop):
        self._stream, self._stop = stream, stop

    def write(self, text: str) -> int:
        with self._tolerated():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._tolerated():
            self._stream.flush()

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._stop.by(getattr(signal, "SIGPIPE", signal.SIGTERM))
        except OSError:  # a log on a full disk, or a terminal that is gone: training goes on without
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def stop_on_signal(group: Group = SINGLE_PROCESS) -> Iterator[Stop]:
    """An event that Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP set, to stop after the current step.

    So does a closed stderr, as of `2>&1 | head`. A second Ctrl-C stops at once. (A second SIGTERM does not: `torchrun`
    sends one to processes that have already had the terminal's Ctrl-C.) SIGUSR1 is what Slurm sends before a limit of
    time, where `sbatch --signal` asks for it. Signals that are ignored, as SIGHUP is under `nohup`, stay so.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.is_set() and is_rank_zero() and not group.is_ending:
            # not print: the signal may have come in the middle of one, and buffers do not take a second
            with suppress(OSError):  # Ctrl-C has ended `tee`, too
                os.write(2, b"\nstopping after this step; once more to stop at once\n")
        stop.by(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_DFL:
        numbers.remove(hangup)
    before = {number: signal.signal(number, request_stop) for number in numbers}
    stderr, sys.stderr = sys.stderr, cast("TextIO", _Watched(sys.stderr, stop))
    try:
        yield stop
    finally:
        sys.stderr = stderr
        for number, handler in before.items():
            signal.signal(number, handler)
