"""What every bench writes beside its times: the machine, the versions, the command; and where it writes them."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any

import torch

from ..._version import __version__
from ...runs.atomic import write_json
from ...runs.console import log, plural, user_path
from ...runs.hardware import choose_device, git_commit, num_cores, processor_use, versions
from ...runs.threads import use_threads

_BUSY = 0.2  # share of the processor that other programs may use without a warning


def run_facts(device: torch.device) -> dict[str, Any]:
    """The command, the versions and the hardware."""
    machine = versions(device) | {"cores": num_cores(), "transformers": _version("transformers")}
    return {"unveil": __version__, "command": _command(), "git": git_commit(), "machine": machine}


class Measurement:
    """A bench from its start to its results. Raises ValueError for options that it could not end with."""

    def __init__(self, device: str, threads: int | None, out: str | None, as_json: bool) -> None:
        self.started, self.as_json = datetime.now(UTC).isoformat(timespec="seconds"), as_json
        need_positive(threads=threads)
        self.device, self.threads = choose_device(device), threads
        self._file = writable(out) if out else None

    @contextmanager
    def timing(self) -> Iterator[dict[str, Any]]:
        """Use the threads that are asked for; gives the facts of the machine and the load on it."""
        with use_threads(self.threads):
            used = {"threads": torch.get_num_threads(), "busy_before": measure_load()}
            yield {**run_facts(self.device), "started": self.started, **used}

    def deliver(self, results: Mapping[str, Any], text: str) -> None:
        """Print the results, as a text or as JSON, and write them to a file where one is given."""
        print(dumps(results, indent=1) if self.as_json else text, flush=True)
        if self._file:
            write_json(self._file, results)
            log(f"every raw time is in {self._file}")


def headline(facts: Mapping[str, Any]) -> str:
    """The command, and below it the machine, for the top of a table."""
    machine = facts["machine"]
    processor = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    cores = f"{facts['threads']} of {machine['cores']} {plural('core', machine['cores'])}"
    return (
        f"{facts['command']}\n  on {processor}, {cores}, torch {machine['torch']}, commit {facts['git'] or 'unknown'},"
        f" others busy {facts['busy_before']:.0%}"
    )


def measure_load() -> float:
    """The share of the processor that other programs use, over a second; much of it is warned of."""
    busy = processor_use()
    if busy > _BUSY:
        log(f"warning: other programs keep the processor {busy:.0%} busy; the times are less reliable")
    return busy


def need_positive(**numbers: int | None) -> None:
    """Raise ValueError, which names the argument, for a number below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is a whole number, at least 1; got {number}")


def writable(out: str) -> Path:
    """The file to write, checked before minutes are spent."""
    file = user_path(out)
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"--out is a JSON file in a folder that exists; got {out}")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {out} cannot be written: no permission in {file.parent}; give another folder")
    return file


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _command() -> str:
    program = Path(sys.argv[0])
    is_ours = "unveil" in (program.name, program.parent.name)
    return shlex.join(["unveil", *sys.argv[1:]]) if is_ours else "unveil.bench(...)"
