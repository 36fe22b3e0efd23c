"""`unveil bench`: a training step against transformers' and along the ladder from MAE to CrossMAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch

from ...data.given_types import Data
from ...data.loader import Loader
from ...data.sources import Source, open_source
from ...data.transforms import View
from ...modeling.optim import OptimizerName
from ...recipes.options import accept_python_values, as_text, as_tuple
from ...runs.console import Progress, log
from ...runs.hardware import has_native_bf16, memory_total
from .chosen import choose_settings, mode_of
from .contenders import check_names, select_contenders
from .flops_and_memory import MEANING, StepCost, peak, step_cost
from .goals import judge_goals
from .machine import Measurement, need_positive
from .modes import AUTO, How, split_names
from .products import Product, Rates, record_products, seconds_alone
from .profile import StepProfile, patch_profile
from .results import Entry, Peak, Results, format_results
from .timing import Seconds, Stepper, interleave
from .work import Contender, Work

_WARMUP = 2  # rounds: the first makes the optimizer's moments and chooses kernels
PRESETS: dict[str, dict[str, Any]] = {
    "base": {"size": "base", "patch": 16, "image_size": (224,), "batch_size": 32},
    "cifar": {"size": "tiny", "patch": 4, "image_size": (32,), "batch_size": 64},
}


@accept_python_values
def bench(
    *,
    preset: Literal["base", "cifar"] | None = None,
    size: str | None = None,
    patch: int | None = None,
    image_size: int | Sequence[int] = (),
    batch_size: int | None = None,
    optimizer: OptimizerName = "adamw",
    contenders: str | Sequence[str] = ("mae", "transformers", "cross-attention", "partial", "inter-block"),
    precision: Literal["both", "float32", "bf16", "auto"] = "both",
    rounds: int | None = None,
    memory: bool = True,
    compile: bool = False,
    profile: bool = False,
    data: Data | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Time a training step, forward, backward, update and averages; returns and prints the results.

    All contenders take turns in one process, on the same images, so that the ratios hold where the times drift.

    preset: base (ViT-B/16, 224 pixels, 32 images a step) or cifar (ViT-tiny/4, 32 pixels, 64 images); flags beside it
        override it
    size: width and depth of the ViT: nano, tiny, small, base, large, huge; by default base
    patch: side of a patch in pixels; by default 16
    image_size: side of an image in pixels, or its height and width; by default 224
    batch_size: images per step; by default 8 on a processor, 64 or more on a GPU, as its memory allows
    optimizer: what updates our models, as in `pretrain`; peers have AdamW
    contenders: what is timed; the first is the base of the ratios. Peers are transformers, timm and lightly. A mode
        behind a name is for it alone: mae:auto, transformers:float32, mae:bf16, mae:bf16+compile
    precision: both is float32, and bf16 where the device has it in hardware; auto is what pretrain chooses here for a
        long run (precision and compilation)
    rounds: turns of each contender; by default 10 on a processor, 30 on a GPU
    memory: measure peak memory too, each contender in a process of its own
    compile: compile the steps with torch.compile
    profile: also where the time of each step goes, by kind of operation, how far each kind is from its limit, and what
        limits the step
    data: with profile, images that are loaded for the profiled steps, so that it shows how long they wait for them
    device: cpu, cuda, cuda:1, mps; auto takes the best
    threads: threads of the processor; by default as many as torch takes
    seed: of weights, images and masks
    out: a JSON file for every raw time, the machine and the versions
    json: print the same JSON instead of the table

    >>> import unveil
    >>> small = dict(size="nano", patch=8, image_size=16, batch_size=2, rounds=1, memory=False)
    >>> result = unveil.bench(contenders="mae", precision="float32", **small)
    unveil.bench(...) ...
    """
    contenders = as_tuple(contenders)
    measurement = Measurement(device, threads, as_text(out), json)
    chosen = measurement.device
    rounds = (10 if chosen.type == "cpu" else 30) if rounds is None else rounds
    need_positive(rounds=rounds)
    check_names(tuple(split_names(contenders, ())))
    if data is not None and not profile:
        raise ValueError("--data is for --profile, which shows the time that steps wait for it; give both, or neither")
    source = None if data is None else open_source(as_text(data))
    given = {"size": size, "patch": patch, "image_size": as_tuple(image_size), "batch_size": batch_size}
    work = replace(work_of(preset, given, seed, chosen), optimizer=optimizer)
    modes, skipped = _modes(precision, chosen, compile)
    of_name = split_names(contenders, modes)
    present, absent = select_contenders(tuple(of_name), work)
    skipped |= absent
    for name, why in skipped.items():
        log(f"{name} is left out: {why}")

    with measurement.timing() as facts:
        products = {c.name: record_products(c, work) for c in present}
        costs = {c.name: step_cost(c, work, products[c.name]) for c in present}
        bench_of = _Bench(present, {c.name: of_name[c.name] for c in present}, work, chosen)
        megabytes: dict[str, dict[str, float | None]] = {
            c.name: {m: peak(c, work, bench_of.mode(c.name, m), chosen) if memory else None for m in of_name[c.name]}
            for c in present
        }
        check_room(costs, megabytes, chosen)
        with patch_profile(profile and bench_of.compiles):
            seconds, peaks = bench_of.time(products, rounds)
            profiles = bench_of.profile(peaks, source) if profile else {}

    entries = tuple(
        Entry(
            c.name,
            c.summary,
            costs[c.name].parameters,
            costs[c.name].flops,
            megabytes[c.name],
            {mode: seconds[c.name, mode] for mode in of_name[c.name]},
            {mode: peaks[c.name, mode] for mode in of_name[c.name]},
            bench_of.chosen.get(c.name),
            {mode: profiles[c.name, mode] for mode in of_name[c.name] if profile},
        )
        for c in present
    )
    facts |= {
        "compile": compile,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "rounds": rounds,
        "warmup": _WARMUP,
        "memory_is": MEANING.get(chosen.type, "not measured on this device") if memory else "not measured",
    }
    every = tuple(dict.fromkeys(mode for of in of_name.values() for mode in of))
    results = Results(work, every, entries, facts, skipped)
    goals = judge_goals(results)
    told = results.to_dict() | {"goals": [vars(goal) for goal in goals]}
    measurement.deliver(told, "\n".join([format_results(results), *map(str, goals)]))
    return told


class _Bench:
    """The contenders in training, each in its modes, and the clock of their steps and of their products alone."""

    def __init__(
        self, contenders: Sequence[Contender], modes: Mapping[str, Sequence[str]], work: Work, device: torch.device
    ):
        self.contenders, self.modes, self.work, self.device = contenders, modes, work, device
        ours = [c for c in contenders if AUTO in modes[c.name]]
        self.settings = {c.name: choose_settings(c, work, device) for c in ours}
        self.chosen = {name: mode_of(settings) for name, settings in self.settings.items()}
        self.steppers: dict[str, Stepper] = {}

    @property
    def compiles(self) -> bool:
        """Whether any contender is compiled in any of its modes."""
        return any(How.of(self.mode(name, mode)).compile for name, modes in self.modes.items() for mode in modes)

    def mode(self, name: str, mode: str) -> str:
        """The mode that `auto` stands for; any other is itself."""
        return self.chosen[name] if mode == AUTO else mode

    def time(
        self, products: Mapping[str, Mapping[Product, int]], rounds: int
    ) -> tuple[dict[tuple[str, str], list[Seconds]], dict[tuple[str, str], list[Peak]]]:
        """The seconds of each step and the peaks, by contender and mode, for each round."""
        batch = self.work.batch(self.device)
        steps = {}
        by_type: dict[torch.dtype, set[Product]] = {}
        for c in self.contenders:
            stepper = self.steppers[c.name] = Stepper(c.build(self.work), batch, self.device, c.period)
            for mode in self.modes[c.name]:
                if mode == AUTO:
                    stepper.settings[mode] = self.settings[c.name]
                steps[c.name, mode] = partial(stepper.step, mode)
                by_type.setdefault(How.of(self.mode(c.name, mode)).dtype, set()).update(products[c.name])
        rates = {dtype: Rates(of, self.device, dtype) for dtype, of in by_type.items()}
        peaks: dict[tuple[str, str], list[Peak]] = {key: [] for key in steps}
        with closing(Progress()) as progress:

            def after_round(done: int, of: int) -> None:
                measured = {dtype: rate.measure() for dtype, rate in rates.items()}
                for c in self.contenders if done > 0 else ():
                    for mode in self.modes[c.name]:
                        dtype = How.of(self.mode(c.name, mode)).dtype
                        square, each = measured[dtype]
                        alone = seconds_alone(products[c.name], each) / c.period
                        peaks[c.name, mode].append(Peak(rates[dtype].square.flops / square, alone))
                progress.update("warming up" if done < 1 else f"round {done} of {of}", done, of)

            return interleave(steps, rounds, _WARMUP, after_round), peaks

    def profile(
        self, peaks: Mapping[tuple[str, str], Sequence[Peak]], source: Source | None
    ) -> dict[tuple[str, str], StepProfile]:
        """Where the time of each step goes, by contender and mode; on the images of a source, or those at hand."""
        profiles = {}
        for (name, mode), measured in peaks.items():
            log(f"profiling {name} in {mode} ...")
            how, peak = How.of(self.mode(name, mode)), max(p.square for p in measured)
            if source is None:
                profiles[name, mode] = self.steppers[name].profile(mode, how, peak)
                continue
            size = min(self.work.batch_size, len(source))
            loader = Loader(source, View(self.work.sides, (0.2, 1.0)), size, self.work.seed)
            with closing(loader.endless()) as batches:
                profiles[name, mode] = self.steppers[name].profile(mode, how, peak, batches)
        return profiles


def preset_of(name: str | None, otherwise: str) -> dict[str, Any]:
    """The shape of a preset, or of another one where none is named. Raises ValueError for a preset there is not."""
    if name is not None and name not in PRESETS:
        raise ValueError(f"preset is one of {', '.join(PRESETS)}; got {name}")
    return PRESETS[name or otherwise]


def work_of(preset: str | None, given: Mapping[str, Any], seed: int, device: torch.device) -> Work:
    """The work of a preset, or of ViT-B/16 at 224, with what was given in its place."""
    shape = preset_of(preset, "base") | {name: value for name, value in given.items() if value not in (None, ())}
    if preset is None and given["batch_size"] is None:
        shape["batch_size"] = _fitting_batch(device)
        log(f"{shape['batch_size']} images a step, fitted to this device; --batch-size changes it")
    return Work(**shape, seed=seed)


def _modes(
    precision: Literal["both", "float32", "bf16", "auto"], device: torch.device, compile: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The modes of contenders that have none of their own; and why `both` leaves out bf16, if it does."""
    skipped = {}
    if precision == "both" and not has_native_bf16(device):
        skipped["bf16"] = "this device only emulates it; --precision bf16 times it all the same"
    every = ("float32", *(() if skipped else ("bf16",))) if precision == "both" else (precision,)
    return tuple(mode + "+compile" * (compile and mode != AUTO) for mode in every), skipped


def _fitting_batch(device: torch.device) -> int:
    """8 images on a processor; on a GPU 64, and more where it has more than 24 GB."""
    if device.type == "cuda":
        gigabytes = memory_total(device) / 1024
        return next(size for size, least in ((256, 70), (128, 36), (64, 0)) if gigabytes >= least)
    return 8 if device.type == "cpu" else 16


def check_room(
    costs: Mapping[str, StepCost], megabytes: Mapping[str, Mapping[str, float | None]], device: torch.device
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
