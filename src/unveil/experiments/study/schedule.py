"""Runs jobs one after another or in parallel, each in its own process, beside other machines on the same folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ...runs.atomic import make_folder, write_json
from ...runs.console import Stopped, duration, log
from ...runs.folder import RunFolder, check_writable
from ...runs.hardware import num_cores
from ...runs.lock import holder
from .jobs import Job
from .worker import TAKEN, is_done

_WAIT = 0.1  # seconds between polls of our own processes
_WAIT_FOR_OTHERS = 2.0  # seconds between polls of other processes' jobs
_TAIL = 4096  # bytes of a log that hold its last line


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    began: float
    logged: str = ""  # the last line of its log that was shown


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1, which Slurm sends before the end of a job, raise Stopped, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for later in numbers:  # the first says all: a second Ctrl-C would end running jobs without saving
            signal.signal(later, signal.SIG_IGN)
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Schedule:
    """The jobs of a study in its folder: which are done, which failed, which are next.

    The last line of each running job's log is shown every `log_seconds`, and with `shows_time` how long the jobs have
    run where no log has another; the logs are in `logs/`.
    """

    def __init__(
        self,
        folder: Path,
        jobs: Sequence[Job],
        slots: int | None = None,
        log_seconds: float = 60.0,
        shows_time: bool = False,
    ):
        self.folder, self.jobs, self.shows_time = folder, list(jobs), shows_time
        self.log_seconds, self.logged = log_seconds, time.monotonic()
        self.gpus = _gpus()
        self.slots = slots or max(1, len(self.gpus))
        self.done: set[str] = {job.name for job in jobs if self._is_done(job)}
        self.failed: dict[str, str] = {}
        self.running: list[_Running] = []
        self.waits = False

    def run(self, describe: Callable[[Job], str]) -> None:
        """Run until no job is left, in this process or another. `describe` gives the result of a finished job in words.

        A job that fails stops only those that need it. Raises KeyboardInterrupt after Ctrl-C, SIGTERM and SIGUSR1, when
        the running jobs have saved their state.
        """
        with stopped_by_signals():
            self._run(describe)

    def _run(self, describe: Callable[[Job], str]) -> None:
        try:
            while self._left():
                self._reap(describe)
                self._log_progress()
                if len(self.running) < self.slots and not self._start_next() and not self.running:
                    self._wait_for_others()
                else:
                    time.sleep(_WAIT)
        except BaseException:
            self._stop()
            raise

    def _left(self) -> list[Job]:
        return [job for job in self.jobs if job.name not in self.done and job.name not in self.failed]

    def _is_done(self, job: Job) -> bool:
        return is_done(self.folder / "runs" / job.name, job.to_dict())

    def _start_next(self) -> bool:
        """Start the first job that is free, in the order of the study; whether there was one."""
        busy = {running.job.name for running in self.running}
        for job in self._left():
            broken = next((need for need in job.needs if need in self.failed), None)
            if broken:
                self.failed[job.name] = f"it starts from {broken}, which failed"
                return True
            if job.name in busy or not self.done.issuperset(job.needs) or holder(self.folder / "locks" / job.name):
                continue
            if self._is_done(job):  # by another process, meanwhile
                self.done.add(job.name)
                return True
            self._start(job)
            return True
        return False

    def _start(self, job: Job) -> None:
        taken = {running.slot for running in self.running}
        slot = next(n for n in range(self.slots) if n not in taken)
        own = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        if self.slots > 1 and not self.gpus:
            own["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // self.slots)))
        command = [sys.executable, "-m", f"{__package__}.worker", str(self.folder), job.name, "--with-parent"]
        (self.folder / "logs").mkdir(exist_ok=True)
        with self._log(job).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **own},
                start_new_session=True,  # Ctrl-C comes to us alone, and we pass it on once
            )  # fmt: skip
        self.running.append(_Running(job, process, slot, time.monotonic()))

    def _log(self, job: Job) -> Path:
        return self.folder / "logs" / f"{job.name}.log"

    def _reap(self, describe: Callable[[Job], str]) -> None:
        for running in [r for r in self.running if r.process.poll() is not None]:
            self.running.remove(running)
            running.process.communicate()  # closes the pipe
            job, code = running.job, running.process.returncode
            if code == TAKEN:
                continue
            if code == 0 and self._is_done(job):
                self.done.add(job.name)
                spent = duration(time.monotonic() - running.began)
                log(f"[{len(self.done)}/{len(self.jobs)}] {job.name}: {describe(job)} ({spent})")
            else:
                self.failed[job.name] = _failure(self._log(job), code)
                log(f"{job.name} failed: {self.failed[job.name]}; {self._log(job)} has the whole log")

    def _log_progress(self) -> None:
        if time.monotonic() - self.logged < self.log_seconds:
            return
        self.logged, lines = time.monotonic(), list[str]()
        for running in self.running:
            line = _last_line(self._log(running.job))
            if line and line != running.logged:
                lines.append(f"{running.job.name}: {line}")
                running.logged = line
        if self.running and not lines and self.shows_time:
            names = " and ".join(running.job.name for running in self.running)
            lines.append(f"{names}: at it for {duration(self.logged - self.running[0].began)}")
        for line in lines:
            log(line)

    def _wait_for_others(self) -> None:
        owners = {job.name: owner for job in self._left() if (owner := holder(self.folder / "locks" / job.name))}
        if owners and not self.waits:
            name, owner = next(iter(owners.items()))
            log(f"waiting for {len(owners)} runs of other processes, such as {name} ({owner})")
            self.waits = True
        time.sleep(_WAIT_FOR_OTHERS)
        self.done |= {job.name for job in self._left() if self._is_done(job)}

    def _stop(self) -> None:
        """Pass Ctrl-C on: each process stops after its step and saves; a second Ctrl-C is passed on too."""
        if self.running:
            log(f"stopping {len(self.running)} running job{'s' if len(self.running) > 1 else ''} ...")
        while self.running:
            for running in self.running:
                if running.process.poll() is None:
                    running.process.send_signal(signal.SIGINT)
            try:
                for running in self.running:
                    running.process.wait()
                    running.process.communicate()  # closes the pipe, whose end would stop the process once more
                self.running.clear()
            except KeyboardInterrupt:
                continue


def read_marker(folder: Path, what: Literal["study", "demo"]) -> dict[str, Any]:
    """The settings of a folder's study or demo, {} for a new folder. ValueError for one that holds something else."""
    check_writable(folder)
    marker = folder / f"{what}.json"
    if not marker.exists() and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no {what}; give another --out")
    return dict(RunFolder(folder).read(marker.name, {}))


def write_jobs(folder: Path, jobs: Sequence[Job], device: str) -> None:
    """Write each job as JSON for the process that runs it."""
    for name in ("jobs", "runs"):
        make_folder(folder / name)
    for job in jobs:
        content = {**job.to_dict(), "pretrain": {**job.pretrain, "device": device}, "device": device}
        write_json(folder / "jobs" / f"{job.name}.json", content)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip() and word.strip() != "-1"]
    return [str(n) for n in range(torch.cuda.device_count())]


def _failure(log: Path, code: int) -> str:
    """Why a job failed: the signal that ended it, or the last line of its log."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return _last_line(log).removeprefix("error: ") or f"exit code {code}"


def _last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
