"""Jobs one after another or side by side, each in a process of its own; what others hold or have done is theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...runs.atomic import write_json
from ...runs.console import duration, log
from ...runs.hardware import num_cores
from ...runs.lock import holder
from .jobs import Job
from .worker import TAKEN, is_done

_WAIT = 0.1  # seconds between looks at our own processes
_TAIL = 4096  # bytes of a log that hold its last line
_LOOK = 2.0  # and at what other processes have done


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    began: float
    told: str = ""  # of its own last words, to the user


class Schedule:
    """The jobs of a study in its folder: which are done, which failed, which are next.

    What the running ones last said is told every `told_seconds`; the whole of it is in `logs/`.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], slots: int | None = None, told_seconds: float = 60.0):
        self.folder, self.jobs = folder, list(jobs)
        self.told_seconds, self.told = told_seconds, time.monotonic()
        self.gpus = _gpus()
        self.slots = slots or max(1, len(self.gpus))
        self.done: set[str] = {job.name for job in jobs if self._is_done(job)}
        self.failed: dict[str, str] = {}
        self.running: list[_Running] = []
        self.waits = False

    def run(self, tell: Callable[[Job], str]) -> None:
        """Run until nothing is left, here or elsewhere. `tell` says what a finished job has found.

        A job that fails is noted and stops only those that need it. Raises KeyboardInterrupt after Ctrl-C, when the
        running jobs have saved what they have.
        """
        try:
            while self._left():
                self._reap(tell)
                self._tell_how_far()
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

    def _reap(self, tell: Callable[[Job], str]) -> None:
        for running in [r for r in self.running if r.process.poll() is not None]:
            self.running.remove(running)
            self._close(running)
            job, code = running.job, running.process.returncode
            if code == TAKEN:
                continue
            if code == 0 and self._is_done(job):
                self.done.add(job.name)
                spent = duration(time.monotonic() - running.began)
                log(f"[{len(self.done)}/{len(self.jobs)}] {job.name}: {tell(job)} ({spent})")
            else:
                self.failed[job.name] = _last_words(self._log(job), code)
                log(f"{job.name} failed: {self.failed[job.name]}; {self._log(job)} has the whole of it")

    def _tell_how_far(self) -> None:
        if time.monotonic() - self.told < self.told_seconds:
            return
        self.told = time.monotonic()
        for running in self.running:
            words = _last_line(self._log(running.job))
            if words and words != running.told:
                log(f"{running.job.name}: {words}")
                running.told = words

    def _close(self, running: _Running) -> None:
        assert running.process.stdin
        running.process.stdin.close()

    def _wait_for_others(self) -> None:
        """Other processes hold what is left: look again after a while."""
        held = {job.name: holder(self.folder / "locks" / job.name) for job in self._left()}
        if not self.waits and any(held.values()):
            name, who = next((name, who) for name, who in held.items() if who)
            log(f"waiting for {sum(map(bool, held.values()))} runs of other processes, such as {name} ({who})")
            self.waits = True
        time.sleep(_LOOK)
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
                    self._close(running)
                self.running.clear()
            except KeyboardInterrupt:
                continue


def write_jobs(folder: Path, jobs: Sequence[Job], device: str) -> None:
    """Write what each job is for the process that takes it."""
    for part in ("jobs", "runs"):
        (folder / part).mkdir(exist_ok=True)
    for job in jobs:
        content = job.to_dict()
        content["pretrain"]["device"] = device
        content["device"] = device
        write_json(folder / "jobs" / f"{job.name}.json", content)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip() and word.strip() != "-1"]
    return [str(n) for n in range(torch.cuda.device_count())]


def _last_words(log: Path, code: int) -> str:
    """Why a job ended: the last line of its log that has words in it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return _last_line(log).removeprefix("error: ") or f"exit code {code}"


def _last_line(log: Path) -> str:
    """The last line of a log that has words in it."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
