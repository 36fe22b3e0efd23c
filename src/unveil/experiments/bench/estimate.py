"""`unveil bench estimate`: memory and speed of a step on GPUs that are not here: by formula, so no measurements.

Memory is weights, gradients and AdamW's moments in float32, their copies in bf16, and what the forward pass keeps for
the backward pass. Speed is the counted FLOPs at an assumed share of the peak in bf16 (MFU).
"""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from typing import Any, Literal

from ...modeling.encoder import SIZES
from ...modeling.types import RGB
from ...recipes.options import accept_python_values
from ...runs import console
from .contenders import CONTENDERS
from .flops_and_memory import StepCost, count_flops
from .machine import need_positive
from .work import Work

Estimated = Literal["mae", "inter-block"]
DECODER_WIDTH, DECODER_DEPTH = 512, {"mae": 8, "inter-block": 12}  # the papers'
VISIBLE = PREDICTED = 4  # MAE and CrossMAE read a quarter of the patches, CrossMAE predicts a quarter
MFU = 0.4  # of a GPU's peak that a step is assumed to reach
_USABLE = 0.9  # of a GPU's memory; libraries and fragments take the rest


@dataclass(frozen=True)
class GPU:
    """A data-centre GPU by its data sheet: dense FLOP/s in bf16, in 1e12, and GB of memory."""

    tflops: float
    gigabytes: float


GPUS = {"A100": GPU(312, 80), "H100": GPU(989, 80), "H200": GPU(989, 141)}


def hours_on(gpu: str, flops: float, mfu: float = MFU) -> float:
    """Hours that so many FLOPs take on a GPU, at a share of the peak on its data sheet."""
    return flops / (mfu * GPUS[gpu].tflops * 1e12) / 3600


def activation_bytes(name: Estimated, work: Work, precision: Literal["float32", "bf16"]) -> int:
    """Bytes that a forward pass of one image keeps for the backward pass, with fused attention.

    A block keeps 16 numbers for each token and channel: the inputs of its two norms, which are float32, their outputs,
    queries, keys and values, the attention's output, and the MLP's four times wider hidden layer before and after its
    activation. A block of cross-attention keeps 14 for each query; keys, values and its blend, before and after the
    norm, for each token that it reads.
    """
    dim, depth, _ = SIZES[work.size]
    height, width = work.sides
    patches, values = (height // work.patch) * (width // work.patch), RGB.channels * work.patch**2
    read, narrow, size = 1 + patches // VISIBLE, DECODER_WIDTH, 4 if precision == "float32" else 2

    def block(tokens: int, channels: int, kept: int = 16) -> int:
        return tokens * channels * (2 * 4 + (kept - 2) * size)

    total = patches * values * size + depth * block(read, dim)
    if name == "mae":
        answered = patches - patches // VISIBLE
        total += read * dim * (4 + size)
        total += (DECODER_DEPTH[name] - 1) * block(1 + patches, narrow)
        total += block(answered, narrow, 12) + (1 + patches) * narrow * (4 + 3 * size)  # the last asks for these alone
    else:
        answered = patches // PREDICTED
        context = read * (2 * narrow + 2 * dim) * size
        total += (depth + 1) * read * dim * size
        total += DECODER_DEPTH[name] * (block(answered, narrow, 14) + context)
    return total + answered * (narrow * (4 + size) + 4 * values)


def state_bytes(parameters: int, precision: Literal["float32", "bf16"]) -> int:
    """Bytes of weights, gradients and two moments in float32, and of the weights' copies in bf16."""
    return parameters * (16 + 2 * (precision == "bf16"))


@dataclass(frozen=True)
class Estimate:
    """A step on a GPU: images in it, GB in use and images per second."""

    gpu: str
    batch_size: int
    gigabytes: float
    images_per_second: float


def estimate_step(
    name: Estimated, work: Work, cost: StepCost, gpu: str, mfu: float, batch_size: int | None
) -> Estimate:
    """The estimate for a batch, by default the largest power of two that fits; `cost` is that of one image.

    Raises ValueError for a batch that does not fit.
    """
    states, each = state_bytes(cost.parameters, "bf16"), activation_bytes(name, work, "bf16")
    room = _USABLE * GPUS[gpu].gigabytes * 1e9 - states
    fitting = int(room // each)
    if fitting < (batch_size or 1):
        raise ValueError(f"{fitting} images of {name} fit on one {gpu}, fewer than {batch_size or 1}; give fewer")
    batch = batch_size or 1 << (fitting.bit_length() - 1)
    gigabytes = (states + batch * each) / 1e9
    return Estimate(gpu, batch, gigabytes, 1 / (3600 * hours_on(gpu, cost.flops, mfu)))


@accept_python_values
def bench_estimate(
    *,
    contenders: tuple[Estimated, ...] = ("mae", "inter-block"),
    size: tuple[str, ...] = ("base", "large"),
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    batch_size: int | None = None,
    gpu: tuple[Literal["A100", "H100", "H200"], ...] = ("A100", "H100", "H200"),
    mfu: float = MFU,
    json: bool = False,
) -> list[dict[str, Any]]:
    """Estimate memory and images per second of a training step in bf16 on GPUs, by formula; prints and returns them.

    contenders: mae, inter-block (CrossMAE at 25 %)
    size: width and depth of the ViT, one or several: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of an image in pixels, or its height and width
    batch_size: images per step on one GPU; by default the largest power of two that fits
    gpu: A100 or H100 (80 GB), H200 (141 GB)
    mfu: assumed share of the GPU's peak in bf16 that the step reaches
    json: print the estimates as JSON instead of the table
    """
    need_positive(batch_size=batch_size)
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is a share above 0, at most 1; got {mfu}")
    for given, known in ((contenders, DECODER_DEPTH), (gpu, GPUS)):
        if unknown := [one for one in given if one not in known]:
            raise ValueError(f"estimates are for {', '.join(known)}; got {', '.join(unknown)}")
    rows = []
    for of_size in size:
        for name in contenders:
            work = Work(of_size, patch, tuple(image_size), 1, 0)
            cost = count_flops(CONTENDERS[name], work)
            for card in gpu:
                estimate = estimate_step(name, work, cost, card, mfu, batch_size)
                rows.append({"contender": name, "size": of_size, **vars(estimate), "gflops": cost.flops / 1e9})
    if json:
        print(dumps(rows, indent=1))
        return rows
    titles = ["", "GPU", "batch", "memory", "FLOPs an image", "images/s"]
    cells = [
        [
            f"{CONTENDERS[row['contender']].summary.lstrip('+ ')}, ViT-{row['size']}/{patch}",
            row["gpu"],
            str(row["batch_size"]),
            f"{row['gigabytes']:.0f} GB",
            f"{row['gflops']:.1f} G",
            f"{row['images_per_second']:,.0f}",
        ]
        for row in rows
    ]
    note = f"estimates by formula, not measured: bf16, {mfu:.0%} of the peak, {_USABLE:.0%} of the memory usable"
    print(f"{note}\n{console.table([titles, *cells], 'llr')}", flush=True)
    return rows
