"""Where the time of a step goes, by kind of operation, and how far each kind is from what the machine could do.

torch.profiler gives the time of every operation; the same step in eager mode, seen by a `TorchDispatchMode`, its FLOPs
and the bytes that it reads and writes. The limit of a kind is the longer of its FLOPs at the measured peak and its
bytes at the measured bandwidth.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ...runs import console

Kind = Literal[
    "matrix products", "attention", "casts and copies", "norms", "activation", "other element-wise",
    "optimiser", "averages (EMA)", "launches and overhead", "waiting for data",
]  # fmt: skip
OVERHEAD: Kind = "launches and overhead"
WAITING: Kind = "waiting for data"
EMA_SCOPE, OPTIMISER_SCOPE = "ema", "Optimizer."  # torch names the latter: Optimizer.step#AdamW.step
STEPS = 3  # profiled, and as many before them without the profiler, whose own cost is not part of a step
_BUFFER = 256 << 20  # bytes of the copy that measures the bandwidth, more than caches hold
_BY_NAME: tuple[tuple[Kind, str], ...] = (  # the first that a name contains: of an operation, or of a fused kernel
    ("norms", "layer_norm|batch_norm|layernorm"),
    ("attention", "scaled_dot_product|attention|flash|fmha|softmax|bmm"),
    ("matrix products", r"mm(?![a-z])|gemm|linear_pointwise|::linear|matmul|conv(?!ert)|cutlass"),
    ("activation", "gelu|silu|relu|sigmoid"),
    ("optimiser", "adam|foreach_|vector_norm"),
)
_COPIES = "copy|clone|contiguous|convert|::cat$|_cat_|gather|scatter|::index|::stack"
_FREE = (  # views, memory set aside, and questions that cost nothing but their launch
    "::(empty|new_empty|set_|resolve_|item|_local_scalar|lift|result_type|is_|to$|view|_unsafe_view|as_strided|t$"
    "|transpose|expand|reshape|slice|select|unbind|flatten|unflatten|squeeze|unsqueeze|permute|detach|alias|split"
    "|chunk|narrow|_reshape_alias|unfold)"
)


def kind_of(name: str, scopes: Collection[str] = ()) -> Kind:
    """The kind of an operation or kernel by its name, as the profiler has it, and by the scopes that it is in."""
    if any(scope.startswith(OPTIMISER_SCOPE) for scope in scopes):
        return "optimiser"
    if EMA_SCOPE in scopes:
        return "averages (EMA)"
    if re.search(_FREE, name):
        return OVERHEAD
    for kind, pattern in _BY_NAME:
        if re.search(pattern, name):
            return kind
    return "casts and copies" if re.search(_COPIES, name) else "other element-wise"


@dataclass
class Traffic:
    """FLOPs of matrix products, and bytes read and written."""

    flops: int = 0
    bytes: int = 0


class TrafficRecorder(TorchDispatchMode):
    """Adds up the FLOPs and bytes of what is computed while it is entered, by kind; `scope` is set from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[Kind, Traffic] = {}
        self.scope = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        kind = kind_of(f"aten::{func._schema.name.partition('::')[2]}", (self.scope,))
        traffic = self.of.setdefault(kind, Traffic())
        if func._overloadpacket in flop_registry:
            traffic.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif "scaled_dot_product" in str(func):
            traffic.flops += _attention_flops(str(func), args)
        traffic.bytes += _bytes(func, args, kwargs, out)
        return out


def _attention_flops(name: str, args: Any) -> int:
    """Of a fused attention: two products forwards; backwards four, and one that is computed again."""
    q, k = args[1:3] if "backward" in name else args[:2]
    return 2 * int(q.numel() * k.shape[-2]) * (5 if "backward" in name else 2)


def _bytes(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operation reads and writes: none for a view, or for memory that is only set aside."""
    schema = func._schema
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    if is_view or schema.name.startswith(("aten::empty", "aten::new_empty")):
        return 0
    written = [
        given for a, given in zip(schema.arguments, args, strict=False) if a.alias_info and a.alias_info.is_write
    ]
    overwrites = schema.name in ("aten::copy_", "aten::fill_", "aten::zero_")
    read = [*(args[1:] if overwrites else args), *kwargs.values()]
    made = written or out
    return sum(_touched(t) for t in tree_leaves([read, made]) if isinstance(t, Tensor))


def _touched(tensor: Tensor) -> int:
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count * tensor.element_size()


@dataclass(frozen=True)
class Part:
    """A kind's milliseconds in a step, and those that it would take at its limit: `peak`, `bandwidth` or nothing."""

    kind: Kind
    ms: float
    limit_ms: float
    limit: str


@dataclass(frozen=True)
class StepProfile:
    """The parts of a step, which add up to its time; `bandwidth` in bytes and `peak` in FLOPs per second."""

    ms: float
    parts: tuple[Part, ...]
    peak: float
    bandwidth: float
    is_compiled: bool

    def limiting(self) -> Part:
        """The part with the most time above its limit."""
        return max(self.parts, key=lambda part: part.ms - part.limit_ms)


@contextmanager
def patch_profile(is_on: bool) -> Iterator[None]:
    """Steps compiled inside have kernels that the profiler sees on a CPU too; that costs them a little time."""
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.enable_kernel_profile": is_on}):
        yield


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second that copying a large buffer reads and writes: the best of five."""
    source = torch.zeros(_BUFFER // 4, device=device)
    target = torch.zeros_like(source)
    best = min(_seconds(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * source.nbytes / best


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    act()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def ema_scope(model: nn.Module, enter: Callable[[], Any]) -> Iterator[None]:
    """The updates of averages after a step inside a context of `enter`."""
    inner: Callable[..., None] | None = getattr(model, "after_step", None)
    if inner is None:
        yield
        return

    def after_step(*given: Any) -> None:
        with enter():
            inner(*given)

    model.after_step = after_step  # type: ignore[assignment]  # of this module alone
    try:
        yield
    finally:
        del model.after_step


def record_traffic(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], object]) -> TrafficRecorder:
    """The FLOPs and bytes of a step in eager mode, by kind."""
    recorder = TrafficRecorder()

    @contextmanager
    def ema() -> Iterator[None]:
        recorder.scope = EMA_SCOPE
        yield
        recorder.scope = ""

    hooks = [
        optimizer.register_step_pre_hook(lambda *_: setattr(recorder, "scope", OPTIMISER_SCOPE)),
        optimizer.register_step_post_hook(lambda *_: setattr(recorder, "scope", "")),
    ]
    with ema_scope(model, ema), recorder:
        step()
    for hook in hooks:
        hook.remove()
    return recorder


def profile_step(
    model: nn.Module,
    step: Callable[[], float],
    traffic: TrafficRecorder,
    peak: float,
    device: torch.device,
    period: int = 1,
    is_compiled: bool = False,
) -> StepProfile:
    """A profile of steps that are warm already; `step` makes `period` of them, which differ, and returns the seconds
    that they waited for data.

    `model` is the module whose `after_step` updates averages. What is neither an operation nor waiting is overhead:
    Python, the autograd engine, launches, and on a GPU the time in which it has nothing to do.
    """
    waits: list[float] = []
    seconds = sorted(_seconds(lambda: waits.append(step()), device) for _ in range(STEPS))[STEPS // 2]
    activities = [ProfilerActivity.CPU, *((ProfilerActivity.CUDA,) if device.type == "cuda" else ())]
    with (
        ema_scope(model, lambda: record_function(EMA_SCOPE)),
        torch.profiler.profile(activities=activities) as profiler,
    ):
        for _ in range(STEPS):
            step()
        _wait(device)
    sums = sum_by_kind(profiler.events() or [], on_gpu=device.type == "cuda")
    bandwidth = measure_bandwidth(device)
    ms = {kind: of / 1000 / STEPS / period for kind, of in sums.items() if kind != OVERHEAD}
    waiting = 1000 * sum(waits) / STEPS / period
    overhead = 1000 * seconds / period - waiting - sum(ms.values())
    if overhead < 0:  # the profiler slows small operations down
        ms = {kind: of * (1 + overhead / sum(ms.values())) for kind, of in ms.items()}
    limits = {kind: _limit(traffic.of.get(kind, Traffic()), peak * period, bandwidth * period) for kind in ms}
    parts = [Part(kind, of, *limits[kind]) for kind, of in ms.items()]
    parts.sort(key=lambda part: -part.ms)
    parts += [Part(OVERHEAD, max(0.0, overhead), 0.0, ""), Part(WAITING, waiting, 0.0, "")]
    return StepProfile(sum(part.ms for part in parts), tuple(parts), peak, bandwidth, is_compiled)


def sum_by_kind(events: Collection[FunctionEvent], on_gpu: bool) -> dict[Kind, float]:
    """Microseconds of each kind: the operations' own time, on a GPU that of their kernels."""
    sums: dict[Kind, float] = {}
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU or not _is_operation(event.name):
            continue
        scopes = []
        above = event.cpu_parent
        while above is not None:
            scopes.append(above.name)
            above = above.cpu_parent
        kind = kind_of(event.name, scopes)
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        sums[kind] = sums.get(kind, 0.0) + own
    return sums


def _is_operation(name: str) -> bool:
    """Whether an event is an operation or a fused kernel, and no function of Python or node of the autograd engine."""
    return ("::" in name and not name.startswith(("autograd::", "torch::"))) or "fused" in name or "triton" in name


def _limit(traffic: Traffic, peak: float, bandwidth: float) -> tuple[float, str]:
    by_flops, by_bytes = 1000 * traffic.flops / peak, 1000 * traffic.bytes / bandwidth
    return max(by_flops, by_bytes), "peak" if by_flops >= by_bytes else "bandwidth"


def sentence(profile: StepProfile) -> str:
    """What limits a step, and what can be done where that is known."""
    part = profile.limiting()
    share = part.ms / max(profile.ms, 1e-9)
    if part.kind == WAITING:
        return f"limited by waiting for data, {share:.0%} of the step: give more --workers, or pack the images"
    if part.kind == OVERHEAD:
        advice = "take a larger batch" if profile.is_compiled else "compile the step, or take a larger batch"
        return f"limited by launches and Python between the operations, {share:.0%} of the step: {advice}"
    gain = profile.ms / max(1e-9, profile.ms - part.ms + part.limit_ms)
    reached = part.limit_ms / max(part.ms, 1e-9)
    return (
        f"limited by {part.kind}, {share:.0%} of the step, which reach {reached:.0%} of the {part.limit}: at all of it"
        f" the step would be {gain:.2f} times as fast"
    )


def format_profile(title: str, profile: StepProfile) -> str:
    """A profile as a table, and the sentence."""
    rows: list[list[str]] = [[title, "ms", "share", "limit", "of it", "by"]]
    for part in profile.parts:
        has_limit = part.limit and part.ms
        rows.append(
            [
                part.kind,
                f"{part.ms:.2f}",
                f"{part.ms / max(profile.ms, 1e-9):.1%}",
                f"{part.limit_ms:.2f}" if has_limit else "-",
                f"{part.limit_ms / part.ms:.0%}" if has_limit else "-",
                part.limit if has_limit else "-",
            ]
        )
    rows.append(["step", f"{profile.ms:.2f}", "", "", "", ""])
    measured = (
        f"peak {profile.peak / 1e9:.0f} GFLOP/s, bandwidth {profile.bandwidth / 1e9:.1f} GB/s, both measured here"
    )
    return "\n".join([console.table(rows, "lrrrrl"), f"  {measured}", sentence(profile)])
