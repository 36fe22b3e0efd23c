"""Several processes of which rank zero does what a process alone would, and the others do their share of its work.

The others know nothing but what rank zero sends: a job and the data that it is about. So whatever rank zero takes from
a cache, or finds to be wrong, no process waits for another that does something else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from .console import RankZeroFailed, log


class Team:
    """The processes of a group that rank zero leads. Data are sent once, as their listings may be long."""

    def __init__(self) -> None:
        self.size = dist.get_world_size()
        self.is_busy = False  # with a job, of which the others send their shares
        self._sent: list[Any] = []
        self._has_complained = False

    def send(self, job: Any, data: Any) -> bool:
        """Give the others a job to do their share of; False where it cannot be sent, after saying so."""
        place = next((i for i, known in enumerate(self._sent) if known is data), len(self._sent))
        content = io.BytesIO()
        try:
            torch.save((job, place, None if place < len(self._sent) else data), content)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
            if not self._has_complained:
                log(f"note: rank zero works alone, as other processes cannot be sent what it works on ({error})")
            self._has_complained = True
            return False
        if place == len(self._sent):
            self._sent.append(data)
        dist.broadcast_object_list([content.getvalue()])
        self.is_busy = True
        return True


_leading: list[Team] = []


def team() -> Team | None:
    """The team that this process leads; None where it is alone."""
    return _leading[-1] if _leading else None


@contextmanager
def leading() -> Iterator[None]:
    """Lead the processes that `serve`, until the end; where that is an error they end with RankZeroFailed."""
    own, is_done = Team(), False
    _leading.append(own)
    try:
        yield
        is_done = True
    finally:
        _leading.pop()
        if not own.is_busy:  # else this process ends in the midst of a job, which the others notice
            dist.broadcast_object_list([is_done])


def serve(work: Callable[[Any, Any], None], device: torch.device) -> None:
    """Work on each job and its data that rank zero sends, on a device, until it ends. Raises RankZeroFailed with it."""
    received: list[Any] = []
    while True:
        message: list[Any] = [None]
        dist.broadcast_object_list(message)
        if isinstance(message[0], bool):
            if not message[0]:
                raise RankZeroFailed
            return
        # of another process of this very command, so as trusted as its own memory
        job, place, data = torch.load(io.BytesIO(message[0]), map_location=device, weights_only=False)
        if data is not None:
            received.append(data)
        work(job, received[place])
