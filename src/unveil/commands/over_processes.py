"""Commands whose features or samples are computed by all processes that `torchrun` or `srun` has started."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_PATIENCE = timedelta(days=7)  # the others wait while rank zero solves probes or trains


def over_processes(
    others: Callable[[], R], together: Callable[..., bool] = lambda *args, **kwargs: False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function of one process that leads the others where there are several; these return what `others` does.

    Rank zero alone opens files, decides, prints and writes. Raises RankZeroFailed in the others where it has failed.
    Where `together` is true of the arguments all processes run the function: it trains, and shares each batch itself.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            import torch  # so that --help does not wait for it
            import torch.distributed as dist

            from ..runs.team import leading, serve
            from ..training.distributed import process_group

            if dist.is_initialized():  # within another command
                return function(*args, **kwargs)
            with process_group(patience=_PATIENCE) as group:
                if group.size == 1 or together(*args, **kwargs):
                    return function(*args, **kwargs)
                if group.is_rank_zero:
                    with leading():
                        return function(*args, **kwargs)
                serve(_work, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
                return others()

        return run

    return decorate


def _work(job: Any, data: Any) -> None:
    job.serve(data)
