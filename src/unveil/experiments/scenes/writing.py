"""Scenes as files: rendered by processes, all of them or none."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ...runs.atomic import sync
from ...runs.console import Progress, log
from ...runs.hardware import num_cores

T = TypeVar("T")
Draw = Callable[[Callable[[int], T], Iterable[int]], list[T]]


@contextmanager
def all_or_none(folder: Path, total: int) -> Iterator[tuple[Path, Draw]]:
    """A folder to write `total` scenes to, which becomes `folder` at the end, and what draws them.

    That is called with a function of the number of a scene and the numbers, and returns what the function returns, in
    their order. A scene takes about 12 ms of Python, which threads cannot share: so processes, once, and every run
    reads the files.
    """
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    progress, done = Progress(), 0
    log(f"rendering {total:,} scenes with {num_cores()} cores ...")
    pool = ProcessPoolExecutor(num_cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))

    def draw(one: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
        nonlocal done
        made = []
        for result in pool.map(one, numbers, chunksize=max(1, min(16, total // 64))):
            made.append(result)
            done += 1
            progress.update(f"{done:,} of {total:,} scenes", done, total)
        return made

    try:
        yield unfinished, draw
        for path in (*unfinished.rglob("*"), unfinished):
            sync(path)
        unfinished.replace(folder)
        sync(folder.parent)
    finally:  # also after Ctrl-C, which the workers leave to this process
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        progress.close()
