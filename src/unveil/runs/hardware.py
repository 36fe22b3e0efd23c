"""The hardware of this machine: device, precision, cores, memory, and the versions of a run."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from .run_config import Precision

BUSY = 0.5  # of the cores in other programs' use, from which compiling takes too long
_READERS_NICE = 10  # lower priority of threads that prepare data


def choose_device(name: str = "auto") -> torch.device:
    """The named device, or the best there is: CUDA, then Apple's, then the processor."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); give --device cpu, or auto") from error
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; where it only emulates it, float32 is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return False


def choose_precision(precision: Precision, device: torch.device) -> Literal["float32", "bf16"]:
    """bf16 where the device has it in hardware, unless `precision` names another."""
    if precision == "auto":
        return "bf16" if has_native_bf16(device) else "float32"
    return precision


def num_cores() -> int:
    """The cores that this process may use: the quota of its container, shared with the others that `torchrun` started.

    A quota of 1.5 cores counts as 2.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = math.ceil(min(here, cpu_quota(Path("/sys/fs/cgroup"))))
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cpu_quota(cgroup: Path) -> float:
    """Cores of CPU time that a container may use, by cgroup v2 or v1; infinite where there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    limited = quota.strip() not in ("max", "-1")
    return float(quota) / float(period) if limited else math.inf


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Mixed precision for models that are evaluated or fine-tuned, as `choose_precision` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(precision, device) == "bf16")


def reading_threads(workers: int | None = None) -> ThreadPoolExecutor:
    """A pool of threads that prepare data during training: `workers` of them, by default one per core.

    On a CPU they share the cores with the model. Each computes with one thread: with OpenMP threads of their own there
    would be more threads than cores, and a step of a small model takes twice as long. On Linux they have a lower
    priority.
    """
    torch.get_num_threads()  # fixes the caller's own number, which would else become that of the readers
    return _ReadingThreads(workers or num_cores(), thread_name_prefix="unveil-data", initializer=_give_way)


class _ReadingThreads(ThreadPoolExecutor):
    """A pool whose shutdown waits, on Linux, until the system's threads have ended.

    Python's threads end before torch has freed their state; a process that exits in between aborts ("terminate called
    without an active exception").
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        tasks = [Path(f"/proc/self/task/{thread.native_id}") for thread in self._threads]
        super().shutdown(wait, cancel_futures=cancel_futures)
        deadline = time.monotonic() + 1
        while wait and any(task.exists() for task in tasks) and time.monotonic() < deadline:
            time.sleep(1e-4)


def _give_way() -> None:
    torch.set_num_threads(1)  # of this thread alone
    if platform.system() == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.nice(0) + _READERS_NICE))


def memory_used(device: torch.device) -> float:
    """Megabytes: the peak so far on a GPU, the process's resident memory now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def memory_total(device: torch.device) -> float:
    """Megabytes that a run may use: all of the GPU, or the free memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    return float(psutil.virtual_memory().available) / 2**20


def processor_name() -> str:
    """The name of the processor, such as `AMD EPYC 7763`."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def versions(device: torch.device) -> dict[str, Any]:
    """The versions and the hardware of a run, for its run.json."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def git_commit() -> str | None:
    """The commit of the working folder's repository, with a plus when there are changes; None where there is none."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        process = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None if process.returncode == 0 else None


def processor_use() -> float:
    """The share of all cores that other programs use, measured over a second."""
    began, before = time.monotonic(), time.process_time()
    used = psutil.cpu_percent(interval=1.0) / 100
    own = (time.process_time() - before) / (time.monotonic() - began) / (psutil.cpu_count() or 1)
    return max(0.0, float(used - own))
