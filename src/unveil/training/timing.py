"""The seconds that an update takes on this machine, and settings with which it runs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache

import torch

from ..data.loader import Loader
from ..data.upload import uploaded
from ..modeling.compiling import not_compiled
from ..modeling.masked_model import MaskedModel
from ..modeling.optim import Optim
from ..modeling.rng import sample_keys
from ..modeling.types import Batch, Modality
from ..recipes.recipe import Recipe
from ..runs.console import log
from ..runs.hardware import BUSY, choose_precision, memory_total, processor_use
from .config import PretrainConfig
from .trainer import Settings, Trainer

_UPDATES, _SECONDS = 8, 2.0  # timed with real data: at most so many updates, ended after so many seconds
_LONG = 5.0  # seconds of an update that is timed only once
TRIALS_FROM = 60.0  # seconds of training from which alternatives are timed before it
COMPILE_FROM = 540.0  # and from which one of them is the compiled step: a tenth faster pays for a minute of compiling
FASTER = 0.9  # of the time, below which an alternative is taken
LARGER = 0.8  # of the time of an image, below which a batch of twice the size is taken: it halves the updates


def build_once(recipe: Recipe) -> Recipe:
    """The recipe with stages that build their model once and then return it: to check and time, not to train."""
    return replace(recipe, stages=tuple(replace(stage, build=cache(stage.build)) for stage in recipe.stages))


def tune_step(
    config: PretrainConfig, recipe: Recipe, modalities: Sequence[Modality], device: torch.device, processes: int = 1
) -> tuple[Settings, float]:
    """Settings that work on the device, and the seconds that an update takes per image.

    On a GPU the micro-batch is the largest that fits; where compilation fails, it is turned off.
    """
    batch = max(1, recipe.optim.batch_size // processes)
    settings = Settings(
        str(device),
        choose_precision(config.precision, device),
        min(batch, config.micro_batch or first_micro_batch(recipe, batch, device)),
        compile=config.compile == "on" or (config.compile == "auto" and device.type == "cuda" and not config.shard),
        save_minutes=config.save_minutes,
        val_every=1.0,
        save_every=config.save_every,
        shard=config.shard,
        checkpoint_activations=config.checkpoint_activations,
        checkpoint_format=config.checkpoint_format,
        adaptive_threads=adaptive_threads(config, device),
    )
    while True:
        try:
            return settings, measure_step(recipe, settings, batch, modalities) / (batch * processes)
        except torch.OutOfMemoryError:
            if config.micro_batch or settings.micro_batch == 1:
                raise
            torch.cuda.empty_cache()
            settings = replace(settings, micro_batch=settings.micro_batch // 2)
        except Exception as error:  # compilers raise many types; an error of the model itself is raised again below
            if not settings.compile:
                raise
            log(not_compiled(error, "training goes on"))
            settings = replace(settings, compile=False)


def adaptive_threads(config: PretrainConfig, device: torch.device) -> int:
    """The most threads of a run whose number of threads follows the load of the machine; 0 where it is fixed.

    It is for `--threads`, and for `--precision float32`, whose runs are the same to the bit.
    """
    is_fixed = device.type != "cpu" or config.threads is not None or config.precision == "float32"
    return 0 if is_fixed else torch.get_num_threads()


def choose_fastest(
    config: PretrainConfig,
    recipe: Recipe,
    settings: Settings,
    modalities: Sequence[Modality],
    planned: float,
    largest: int = 0,
) -> tuple[Settings, float]:
    """The settings with what is fastest on this CPU of what the options leave open, and the seconds of a micro-batch.

    One thread or all, bf16 or float32 are timed, then batches of twice the size up to `largest`; for a run of ten
    minutes (`planned`, in seconds) also the compiled step, since compiling takes about a minute and fixes the number
    of threads: on a machine that is quiet, and with all of them, or it is not tried.
    """

    def seconds(of: Settings) -> float:
        return measure_step(recipe, of, of.micro_batch, modalities)

    best = seconds(settings)
    if settings.adaptive_threads > 1:
        torch.set_num_threads(1)
        if (single := seconds(settings)) < FASTER * best:
            log(f"note: a step takes {single / best:.0%} of the time with one thread, so one computes for now")
            best = single
        else:
            torch.set_num_threads(settings.adaptive_threads)
    if config.precision == "auto" and settings.precision == "bf16":
        float32 = replace(settings, precision="float32")
        if (took := seconds(float32)) < FASTER * best:
            settings, best = float32, took
    while 2 * settings.micro_batch <= largest and not settings.compile:
        larger = replace(settings, micro_batch=2 * settings.micro_batch)
        if (took := seconds(larger)) >= LARGER * 2 * best:
            break
        settings, best = larger, took
    all_threads = torch.get_num_threads() >= settings.adaptive_threads
    if (
        config.compile == "auto"
        and not config.shard
        and planned >= COMPILE_FROM
        and all_threads
        and processor_use() < BUSY
    ):
        log("compiling the step, to see whether that pays ...")
        compiled = replace(settings, compile=True)
        try:
            if (took := seconds(compiled)) < FASTER * best:
                settings, best = compiled, took
        except Exception as error:  # compilers raise many types; an error of the model itself is raised above
            log(not_compiled(error, "training goes on"))
    return settings, best


def time_with_data(recipe: Recipe, settings: Settings, loader: Loader, step_seconds: float) -> float:
    """Seconds per image of updates on the run's own data; `step_seconds` is per image without any loading.

    On a CPU the loader's threads and the update share the cores, and small batches cost more per image, so both are
    timed together. On a GPU, or with a compiled step, they overlap: the slower of the two decides.
    """
    with closing(loader.endless()) as endless:
        batches = uploaded(endless, torch.device(settings.device))
        if settings.compile or settings.device != "cpu":
            return max(step_seconds, _mean_seconds(lambda step: next(batches)) / loader.batch_size)
        seconds = 0.0
        for stage in recipe.stages:
            trainer = Trainer(stage.build(), recipe.optim, settings)

            def update(step: int, trainer: Trainer = trainer) -> None:
                trainer.model.before_step(step, 0.5)  # teachers that observe now and then do so here as in training
                trainer.update(next(batches), 0.0)

            seconds += stage.epochs * _mean_seconds(update)
    return seconds / recipe.epochs / loader.batch_size


def _mean_seconds(act: Callable[[int], object]) -> float:
    """Mean seconds of a call, which gets its number, without the first one unless that alone is long enough."""
    began = time.perf_counter()
    act(0)
    if (first := time.perf_counter() - began) > _SECONDS:
        return first
    began, done = time.perf_counter(), 0
    while done < _UPDATES and time.perf_counter() - began < _SECONDS:
        done += 1
        act(done)
    return (time.perf_counter() - began) / done


def measure_step(recipe: Recipe, settings: Settings, batch_size: int, modalities: Sequence[Modality]) -> float:
    """Seconds of one update on random images: the mean over stages, weighted by their epochs.

    Raises torch.OutOfMemoryError where the micro-batch does not fit.
    """
    size = min(batch_size, settings.micro_batch)
    batch = random_batch(modalities, size, recipe.view.image_size)
    seconds = [stage.epochs * _measure(stage.build(), recipe.optim, settings, batch) for stage in recipe.stages]
    return sum(seconds) / recipe.epochs * batch_size / size


def _measure(model: MaskedModel, optim: Optim, settings: Settings, batch: Batch) -> float:
    """Seconds of one update: the median of three after a first one that does not count."""
    try:
        trainer = Trainer(model, optim, settings)
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            trainer.update(batch, 0.0)
            if settings.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            if seconds[0] > _LONG and not settings.compile:
                return seconds[0]
        return sorted(seconds[1:])[1]
    finally:  # the next stage, or a smaller micro-batch, gets all memory of the device
        model.zero_grad(set_to_none=True)
        model.cpu()


def random_batch(modalities: Sequence[Modality], count: int, image_size: tuple[int, int]) -> Batch:
    """So many samples of uniform random values or classes, on torch's default device."""
    maps = {}
    for m in modalities:
        shape = (count, m.channels, image_size[0] // m.stride, image_size[1] // m.stride)
        maps[m.name] = torch.randint(m.num_classes, shape) if m.kind == "categorical" else torch.rand(shape)
    return Batch(maps, sample_keys(0, 0, range(count)), torch.zeros(()))


def first_micro_batch(recipe: Recipe, batch_size: int, device: torch.device) -> int:
    """The micro-batch to try first: an upper estimate of one image's activations, as a share of the memory."""
    tokens = recipe.encoder.grid[0] * recipe.encoder.grid[1] * len(recipe.encoder.modalities)
    per_image = 4 * 60 * recipe.encoder.depth * recipe.encoder.dim * tokens / 2**20  # MB
    share = 0.8 if device.type == "cuda" else 0.4
    limit = 128 if device.type == "cpu" else 2048
    return max(1, min(batch_size, limit, int(share * memory_total(device) / per_image)))
