"""Jobs that threads do ahead of their consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import TypeVar

from ..runs.hardware import reading_threads

T = TypeVar("T")


def prefetch(jobs: Iterable[Callable[[], T]], ahead: int, workers: int | None = None) -> Generator[T]:
    """The results of jobs in order; threads work on at most `ahead` jobs beyond the one that the consumer waits for.

    The threads end with the generator: at its end, when it is closed, and on any error.
    """
    pool = reading_threads(workers)
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # what has not begun is dropped
        pool.shutdown(wait=True, cancel_futures=True)
