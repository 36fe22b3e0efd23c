"""The cost of a training step: operations and parameters, counted on shapes, and peak memory, measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from ...runs.console import log
from .contenders import CONTENDERS
from .products import Product, record_products
from .timing import Stepper
from .work import Contender, Work

MEANING = {
    "cuda": "most bytes that torch had allocated on the GPU at once (max_memory_allocated)",
    "cpu": "growth of the process's resident memory from before the model is built to its highest point",
}
_STEPS = 2  # AdamW's moments exist from the end of the first step, so the second has the peak
_CODE = f"from {__name__} import _child; _child()"


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of one step on the whole batch, and trainable parameters."""

    flops: int
    parameters: int


def step_cost(contender: Contender, work: Work, products: Mapping[Product, int]) -> StepCost:
    """The cost of a step of these products (`record_products`).

    Matrix products and convolutions count, two operations per multiply-add; norms, activations and the update do not.
    On the meta device attention is two matrix products, so the count is the same wherever the step then runs.
    """
    with torch.device("meta"):
        model = contender.build(work)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepCost(sum(product.flops * count for product, count in products.items()) // contender.period, parameters)


def count_flops(contender: Contender, work: Work) -> StepCost:
    """The cost of one step on the whole batch, counted on the meta device."""
    return step_cost(contender, work, record_products(contender, work))


def peak(contender: Contender, work: Work, mode: str, device: torch.device) -> float | None:
    """Peak memory of training in megabytes, in a process of its own; None where the device has no such counter.

    Weights, gradients, moments and activations. Raises ValueError when the process fails.
    """
    if device.type not in MEANING:
        return None
    log(f"memory of {contender.name} in {mode} ...")
    order = {
        **{"name": contender.name, "work": asdict(work), "threads": torch.get_num_threads()},
        **{"mode": mode, "device": str(device)},
    }
    done = subprocess.run([sys.executable, "-c", _CODE, json.dumps(order)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"its process ended with {done.returncode}, as when memory runs out"
        raise ValueError(
            f"a step of {contender.name} with {work.batch_size} images could not be made ({why});"
            " if memory ran out, give a smaller --batch-size or --size"
        )
    return float(done.stdout.splitlines()[-1])


def _child() -> None:
    """The other process: two steps of one contender; prints megabytes as its last line."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    device = torch.device(order["device"])
    work = Work(**order["work"] | {"image_size": tuple(order["work"]["image_size"])})
    contender = CONTENDERS[order["name"]]
    with torch.device("meta"):
        contender.build(work)  # imports its libraries, which are not counted
    batch = work.batch(device)
    before = psutil.Process().memory_info().rss
    stepper = Stepper(contender.build(work), batch, device)
    for _ in range(_STEPS):
        stepper.step(order["mode"])
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else highest_resident() - before
    print(most / 2**20)


def highest_resident() -> int:
    """Peak resident memory of this process in bytes. Linux's getrusage would start from the parent process's memory."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
