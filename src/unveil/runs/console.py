"""What a person is told while a command runs, on stderr: notes, and the progress line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

_PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
_TERMINAL_SECONDS = 0.2


class RankZeroFailed(Exception):  # noqa: N818
    """The process that speaks for this one has stopped, and has said why."""


def is_rank_zero() -> bool:
    """Whether this process speaks for the others that `torchrun` started with it; one alone does."""
    return os.environ.get("RANK", "0") == "0"


def log(text: str) -> None:
    """What a person should know while the command runs: to stderr, results go to stdout."""
    if is_rank_zero():
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


class Progress:
    """Where training is: step, epoch, loss, rate, gradient, speed, waiting for data, memory, time left.

    In place on a terminal, plain lines elsewhere.
    """

    def __init__(self, total: int, per_epoch: int):
        self.total, self.per_epoch = total, per_epoch
        self.is_terminal = sys.stderr.isatty()
        self.began: tuple[float, int] | None = None
        self.shown = 0.0
        self.width = 0

    def show(self, line: Mapping[str, Any]) -> None:
        """Tell a line of metrics; too soon after the last one it is left out."""
        now, step = time.monotonic(), line["step"]
        if self.began is None:
            self.began = (now, step)
        is_last = step == self.total
        if (
            not is_last
            and self.shown
            and now - self.shown < (_TERMINAL_SECONDS if self.is_terminal else _PLAIN_SECONDS)
        ):
            return
        self.shown = now
        done = step - self.began[1]
        left = (now - self.began[0]) / done * (self.total - step) if done else 0.0
        text = (
            f"step {step}/{self.total}  epoch {line['epoch']:.1f}/{self.total / self.per_epoch:.3g}"
            f"  loss {_number(line['loss'], '.4f')}  lr {line['lr']:.1e}  grad {_number(line['grad_norm'], '.2f')}"
            f"  {line['images_per_second']:.0f} images/s  data wait {line['data_wait']:.0%}"
            f"  {line['memory_mb'] / 1024:.1f} GB"
            + (f"  {line['skipped']} skipped" if line["skipped"] else "")
            + (f"  {duration(left)} left" if done and not is_last else "")
        )
        if self.is_terminal:
            print("\r" + text.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(text)
        else:
            log(text)

    def close(self) -> None:
        """End the line."""
        if self.is_terminal and self.width:
            log("")
            self.width = 0


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
