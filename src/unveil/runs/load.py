"""What keeps a process from its cores: other programs, a quota, swapping. Measured between two moments."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from .hardware import num_cores

CGROUP = Path("/sys/fs/cgroup")
PAUSED, STOLEN, BUSY = 0.05, 0.1, 0.25  # shares of the time, or of the cores, from which they are named
SWAPPED = 1 << 20  # bytes a second


@dataclass(frozen=True)
class Counters:
    """Counters of the machine and of this process and its children, in seconds and bytes since some moment."""

    time: float
    busy: float
    stolen: float
    own: float
    paused: float
    swapped: float


def read_counters(cgroup: Path = CGROUP) -> Counters:
    """The counters now; 0 for what the system does not tell."""
    cpu, process = psutil.cpu_times(), psutil.Process()
    idle = cpu.idle + getattr(cpu, "iowait", 0.0) + getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)
    used = process.cpu_times()
    children = sum(used[:4])  # user and system, of the process and of its children that have ended
    swap = psutil.swap_memory()
    return Counters(
        time.monotonic(),
        sum(cpu) - idle,
        getattr(cpu, "steal", 0.0),
        children,
        paused_seconds(cgroup),
        float(swap.sin + swap.sout),
    )


def paused_seconds(cgroup: Path) -> float:
    """Seconds for which the quota of a container has stopped it, by cgroup v2 or v1; 0 where none is told."""
    for file, name, unit in (("cpu.stat", "throttled_usec", 1e6), ("cpu/cpu.stat", "throttled_time", 1e9)):
        try:
            lines = dict(line.split() for line in (cgroup / file).read_text().splitlines())
            return float(lines[name]) / unit
        except (OSError, ValueError, KeyError):
            continue
    return 0.0


class LoadMeter:
    """Why a computation is slower than the machine can be, since the meter was made."""

    def __init__(self, read: Callable[[], Counters] = read_counters, cores: int | None = None):
        self.read, self.cores, self.before = read, cores or num_cores(), read()

    def causes(self, threads: int | None = None) -> list[str]:
        """What has taken time from this process of so many threads, and what to do; empty where nothing is seen."""
        a, b = self.before, self.read()
        seconds = max(1e-9, b.time - a.time)
        causes = []
        if (paused := (b.paused - a.paused) / seconds) > PAUSED:
            causes.append(
                f"the CPU quota of the container stops it ({paused:.1f} s in each second, over all threads); raise the"
                " quota, or give fewer --threads and --workers"
            )
        others = (b.busy - a.busy - (b.own - a.own) - (b.stolen - a.stolen)) / seconds
        if others > BUSY * self.cores:
            load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
            way = "end them" if threads == 1 else "end them, or give --threads 1"
            causes.append(f"other programs use {others:.1f} cores, and this run may use {self.cores}{load}; {way}")
        if (stolen := (b.stolen - a.stolen) / seconds / self.cores) > STOLEN:
            causes.append(f"the host gives {stolen:.0%} of the CPU time to other virtual machines; take another host")
        if (b.swapped - a.swapped) / seconds > SWAPPED:
            causes.append(
                f"memory is full and {(b.swapped - a.swapped) / 2**30:.1f} GB were swapped; end other programs, or give"
                " a smaller --micro-batch"
            )
        return causes
