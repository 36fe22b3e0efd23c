"""`unveil bench`: a training step against transformers' and along the ladder from MAE to CrossMAE."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from ..._version import __version__
from ...recipes.options import accept_python_values
from ...runs.atomic import write_json
from ...runs.console import Progress, log, user_path
from ...runs.hardware import choose_device, git_commit, has_native_bf16, memory_total, num_cores, versions
from .contenders import Contender, Name, Work, select_contenders
from .flops_and_memory import MEANING, StepCost, count_flops, peak
from .results import Entry, Results, format_results
from .timing import Precision, Seconds, Stepper, interleave

_WARMUP = 2  # rounds: the first makes AdamW's moments and chooses kernels
_BUSY = 0.2  # share of the processor that other programs may use without a warning


@accept_python_values
def bench(
    *,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    batch_size: int | None = None,
    contenders: tuple[Name, ...] = ("mae", "transformers", "cross-attention", "partial", "inter-block"),
    precision: Literal["both", "float32", "bf16"] = "both",
    rounds: int | None = None,
    memory: bool = True,
    compile: bool = False,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Time a training step, forward, backward and update; returns and prints the results.

    All contenders take turns in one process, on the same images, so that the ratios hold where the times drift.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of an image in pixels, or its height and width
    batch_size: images per step; by default 8 on a processor, 64 or more on a GPU, as its memory allows
    contenders: what is timed; the first is the base of the ratios
    precision: both is float32, and bf16 where the device has it in hardware
    rounds: turns of each contender; by default 10 on a processor, 30 on a GPU
    memory: measure peak memory too, each contender in a process of its own
    compile: compile the steps with torch.compile
    device: cpu, cuda, cuda:1, mps; auto takes the best
    threads: threads of the processor; by default as many as torch takes
    seed: of weights, images and masks
    out: a JSON file for every raw time, the machine and the versions
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    chosen = choose_device(device)
    rounds = (10 if chosen.type == "cpu" else 30) if rounds is None else rounds
    for name, number in {"rounds": rounds, "threads": threads}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is a whole number, at least 1; got {number}")
    file = _writable(out) if out else None
    work = Work(size, patch, tuple(image_size), _fitting_batch(chosen) if batch_size is None else batch_size, seed)
    present, skipped = select_contenders(contenders, work)
    precisions, without_bf16 = _precisions(precision, chosen)
    skipped |= without_bf16
    for name, why in skipped.items():
        log(f"{name} is left out: {why}")
    if batch_size is None:
        log(f"{work.batch_size} images a step, fitted to this device; --batch-size changes it")

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        busy = psutil.cpu_percent(interval=1.0) / 100
        if busy > _BUSY:
            log(f"warning: other programs keep the processor {busy:.0%} busy; the times are less reliable")
        costs: dict[str, StepCost] = {c.name: count_flops(c, work) for c in present}
        megabytes: dict[str, dict[Precision, float | None]] = {
            c.name: {p: peak(c, work, p, chosen, compile) if memory else None for p in precisions} for c in present
        }
        _check_room(costs, megabytes, chosen)
        seconds = _time(present, work, precisions, chosen, compile, rounds)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads_before)

    entries = (
        Entry(c.name, c.summary, costs[c.name].parameters, costs[c.name].flops, megabytes[c.name], seconds[c.name])
        for c in present
    )
    facts = {
        "unveil": __version__,
        "command": _command(),
        "started": began,
        "git": git_commit(),
        "machine": versions(chosen) | {"cores": num_cores(), "transformers": _version("transformers")},
        "threads": used,
        "busy_before": busy,
        "compile": compile,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "rounds": rounds,
        "warmup": _WARMUP,
        "memory_is": MEANING.get(chosen.type, "not measured on this device") if memory else "not measured",
    }
    results = Results(work, precisions, tuple(entries), facts, skipped)
    print(format_results(results), flush=True)
    if file:
        write_json(file, results.to_dict())
        log(f"every raw time is in {file}")
    return results.to_dict()


def _time(
    contenders: Sequence[Contender],
    work: Work,
    precisions: Sequence[Precision],
    device: torch.device,
    compile: bool,
    rounds: int,
) -> dict[str, dict[Precision, list[Seconds]]]:
    batch = work.batch(device)
    steppers = {c.name: Stepper(c.build(work), batch, device, compile, c.period) for c in contenders}
    steps = {(str(name), p): partial(stepper.step, p) for p in precisions for name, stepper in steppers.items()}
    with closing(Progress()) as progress:

        def after_round(done: int, of: int) -> None:
            progress.update("warming up" if done < 1 else f"round {done} of {of}", done, of)

        times = interleave(steps, rounds, _WARMUP, after_round)
    return {c.name: {p: times[c.name, p] for p in precisions} for c in contenders}


def _precisions(
    precision: Literal["both", "float32", "bf16"], device: torch.device
) -> tuple[tuple[Precision, ...], dict[str, str]]:
    """The precisions to time; and why `both` leaves out bf16, if it does."""
    if precision == "both" and not has_native_bf16(device):
        return ("float32",), {"bf16": "this device only emulates it; --precision bf16 times it all the same"}
    return ("float32", "bf16") if precision == "both" else (precision,), {}


def _fitting_batch(device: torch.device) -> int:
    """8 images on a processor; on a GPU 64, and more where it has more than 24 GB."""
    if device.type == "cuda":
        gigabytes = memory_total(device) / 1024
        return next(size for size, least in ((256, 70), (128, 36), (64, 0)) if gigabytes >= least)
    return 8 if device.type == "cpu" else 16


def _check_room(
    costs: Mapping[str, StepCost], megabytes: Mapping[str, Mapping[Precision, float | None]], device: torch.device
) -> None:
    """Raise ValueError where memory is too small: weights and moments of all contenders stay in it."""
    resident = {name: 12 * cost.parameters / 2**20 for name, cost in costs.items()}
    extra = [4 * cost.parameters / 2**20 for cost in costs.values()]
    extra += [most - resident[name] for name, peaks in megabytes.items() for most in peaks.values() if most is not None]
    need, free = sum(resident.values()) + max(extra), memory_total(device)
    if need > free:
        raise ValueError(
            f"taking turns needs about {need / 1024:.1f} GB, {free / 1024:.1f} GB are there;"
            " give fewer --contenders, a smaller --batch-size or a smaller --size"
        )


def _writable(out: str) -> Path:
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
