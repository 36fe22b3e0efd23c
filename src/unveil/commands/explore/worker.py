"""One thread that computes: models are not shared by several, and the threads of OpenMP are made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")
_LANES = 1000  # of open pages, of which the last number is remembered


class Superseded(Exception):  # noqa: N818  it is no error
    """A newer request has come for the same place of the page: nobody waits for this one."""


class Worker:
    """Computes one request after another. Of the requests of a lane, a place of one page, the newest alone counts."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explore")
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    def run(self, job: Callable[[Callable[[], None]], T], lane: str = "", number: int = 0) -> T:
        """The result of a job, which calls its argument where it can end early. Raises Superseded, and what it raises.

        Requests without a lane are never superseded.
        """
        with self._lock:
            if lane:
                self._newest[lane] = max(number, self._newest.get(lane, number))
                self._newest.move_to_end(lane)
                while len(self._newest) > _LANES:
                    self._newest.popitem(last=False)

        def check() -> None:
            if lane and self._newest.get(lane, number) > number:
                raise Superseded

        def compute() -> T:
            check()
            with torch.inference_mode():
                return job(check)

        return self._pool.submit(compute).result()

    def close(self) -> None:
        """Let go of what waits; what is being computed is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
