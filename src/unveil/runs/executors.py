"""Where the work of a command that many processes share is done: `--on local`, `slurm` or `ray`.

Every process runs the same command in a folder that all share, takes parts of the work that no other has, and ends
when none is left (`each_once`). So an executor only starts processes: it knows neither parts nor results, and what a
process that is lost had begun is done by another.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from .console import log, suggest
from .launcher import place
from .lock import hold
from .slurm import SlurmJob, SlurmOptions

_WAIT_FOR_OTHERS = 2.0  # seconds between two looks at what other processes have done
_RETRIES = 3  # of a worker of Ray that is lost


@dataclass(frozen=True)
class Work:
    """What each process runs: a function with these options, which is the command `unveil VERB SUBJECT --...`.

    Options at their defaults are left out.
    """

    function: Callable[..., object]
    verb: str
    subject: str
    options: Mapping[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """The options that are passed on, by their names."""
        defaults = {name: p.default for name, p in signature(self.function).parameters.items()}
        return {name: value for name, value in self.options.items() if value != defaults[name]}

    @property
    def words(self) -> list[str]:
        """The words of the command after `unveil`, as a shell splits them."""
        words = [self.verb, self.subject]
        for name, value in self.given.items():
            values = () if isinstance(value, bool) else value if isinstance(value, tuple) else (value,)
            words += [f"--{'no-' * (value is False)}{name.replace('_', '-')}", *map(str, values)]
        return words

    def __str__(self) -> str:
        return shlex.join(["unveil", *self.words])


class Executor(Protocol):
    """Starts processes; `is_awaited` says whether `start` returns when they have ended."""

    @property
    def is_awaited(self) -> bool: ...
    def start(self, work: Work, parts: int, jobs: int | None, dry_run: bool = False) -> None:
        """Start `jobs` processes, by default as many as there is room for, for work of so many parts.

        With `dry_run` it is printed what would be started. Raises ValueError where they cannot be started or end with
        a mistake.
        """


def executor(on: str) -> Executor:
    """The executor of an address: `local`, `slurm:partition=gpu,time=12:00:00` or `ray:address=head:6379,gpus=1`.

    Raises ValueError for another name and for options that it has not.
    """
    name, _, text = on.partition(":")
    if name not in _EXECUTORS:
        raise ValueError(f"--on {on}: {suggest(name, _EXECUTORS)}; such as slurm:partition=gpu,time=12:00:00")
    if place().size > 1:
        raise ValueError(f"--on {on} starts processes itself: give it to one process, not to torchrun, srun or mpirun")
    given: dict[str, Any] = {}
    known = {field.name: str(field.type) for field in fields(_EXECUTORS[name])}
    for pair in filter(None, text.split(",")):
        option, equals, value = (word.strip() for word in pair.partition("="))
        option = option.replace("-", "_")
        if not equals or option not in known:
            raise ValueError(f"--on {on}: {pair!r} is no option of {name}; {suggest(option, known)}")
        try:
            given[option] = next(kind for word, kind in _KINDS.items() if word in known[option])(value)
        except ValueError as error:
            raise ValueError(f"--on {on}: {option} is a number, got {value!r}") from error
    made: Executor = _EXECUTORS[name](**given)
    return made


@dataclass(frozen=True)
class Local:
    """Processes on this machine; a single one is the process that asks."""

    is_awaited = True

    def start(self, work: Work, parts: int, jobs: int | None, dry_run: bool = False) -> None:
        count = min(parts, jobs or 1)
        if dry_run:
            print(f"{count} x {work}")
        elif count > 1:  # else the process that asks is the one
            _run_processes(work, count)


@dataclass(frozen=True)
class Slurm(SlurmOptions):
    """An array of jobs of Slurm, each of one process on one machine; the options are those of `unveil submit`."""

    is_awaited = False

    def start(self, work: Work, parts: int, jobs: int | None, dry_run: bool = False) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        array = min(parts, jobs or parts)
        job = SlurmJob(command=tuple(work.words), name=f"unveil-{work.verb}", array=array, **given)
        if dry_run:
            print(job.script, end="")
        else:
            job.submit()


@dataclass(frozen=True)
class Ray:
    """Tasks of Ray (Moritz et al., OSDI 2018) on the cluster at an address, by default RAY_ADDRESS or this machine.

    Each takes so many processors and GPUs; the machines share the folders of data and results, at the same paths.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0

    is_awaited = True

    def start(self, work: Work, parts: int, jobs: int | None, dry_run: bool = False) -> None:
        if dry_run:
            print(f"{min(parts, jobs or parts)} x {work}")
            return
        try:
            ray = import_module("ray")
        except ImportError as error:
            raise ValueError("--on ray needs ray, which is not installed here: pip install 'unveil[ray]'") from error
        is_own = not ray.is_initialized()
        if is_own:
            try:
                ray.init(address=self.address, configure_logging=False)
            except (ConnectionError, RuntimeError) as error:
                raise ValueError(f"no cluster of Ray answers at {self.address}: {error}") from error
        try:
            self._run(ray, work, parts, jobs)
        finally:
            if is_own:
                ray.shutdown()

    def _run(self, ray: Any, work: Work, parts: int, jobs: int | None) -> None:
        there = ray.cluster_resources()
        rooms = [there.get(name, 0) // need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need]
        room = int(min(rooms, default=parts))
        if room < 1:
            raise ValueError(
                f"Ray has {there.get('CPU', 0):g} processors and {there.get('GPU', 0):g} GPUs here, and a task needs"
                f" {self.cpus:g} and {self.gpus:g}: give fewer by --on ray:cpus=1,gpus=0"
            )
        count = min(parts, jobs or room)
        log(f"{count} tasks of Ray")
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=_RETRIES)(_in_folder)
        left = [task.remote(str(Path.cwd()), work.function, work.subject, work.given) for _ in range(count)]
        failed: Exception | None = None
        try:
            while left:
                ready, left = ray.wait(left)
                try:
                    ray.get(ready)
                except ray.exceptions.RayTaskError as error:  # a mistake, which is the same in every task
                    failed = failed or (error.cause if isinstance(error.cause, ValueError | OSError) else error)
                except ray.exceptions.RayError as error:
                    log(f"note: a task of Ray was lost {_RETRIES + 1} times; the others do what it had begun ({error})")
        except BaseException:
            for reference in left:
                ray.cancel(reference)  # as Ctrl-C: each saves what it has
            if left:
                ray.wait(left, num_returns=len(left))
            raise
        if failed is not None:
            raise failed


_EXECUTORS: dict[str, Any] = {"local": Local, "slurm": Slurm, "ray": Ray}
_KINDS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def _in_folder(folder: str, function: Callable[..., object], subject: str, options: Mapping[str, Any]) -> None:
    """A task of Ray: results are in the folder, so nothing is sent back, and tables are printed by who asked."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        function(subject, **options)


def _run_processes(work: Work, count: int) -> None:
    """Run the command in several processes, and wait for them. Raises ValueError where one ends with a mistake."""
    command = [sys.executable, "-m", "unveil", *work.words]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        statuses = [process.wait() for process in processes]
    finally:  # Ctrl-C reaches them too; who asks for it in another way has them end
        for process in processes:
            process.terminate()
            process.wait()
    if any(status > 0 for status in statuses):  # below 0 it was lost, and another has done its part
        raise ValueError(f"{sum(status > 0 for status in statuses)} of {count} processes failed, as said above: {work}")


def each_once(parts: Iterable[str], locks: Path, is_done: Callable[[str], bool], do: Callable[[str], None]) -> None:
    """Do parts of work by their names, beside other processes that share the folder `locks`, until all are done.

    A part is done by one process at a time; of one that ends without having done it, another takes it.
    """
    left = list(parts)
    while left := [part for part in left if not is_done(part)]:
        is_idle = True
        for part in left:
            with hold(locks / part) as other:
                if other is None and not is_done(part):
                    do(part)
                    is_idle = False
        if is_idle and not all(map(is_done, left)):
            time.sleep(_WAIT_FOR_OTHERS)
