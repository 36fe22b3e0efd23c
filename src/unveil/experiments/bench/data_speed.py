"""`unveil bench data`: images per second that are read and cropped, beside Pillow alone and what a step consumes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ...data.limits import open_image
from ...data.loader import Loader
from ...data.sources import EncodedSource, SampleSource, Source, Subset, origin, spread
from ...modeling.types import Batch, Modality
from ...recipes.options import accept_python_values
from ...recipes.recipe import Recipe
from ...recipes.registry import build_recipe, load_recipe
from ...runs import console
from ...runs.console import log, plural
from ...runs.hardware import num_cores
from ...training.autoconfig import AutoConfig, configure_shape, configure_size
from ...training.config import PretrainConfig
from ...training.data_setup import declared_for, inspect_data, modalities_of, open_data, settle
from ...training.timing import build_once, choose_fastest, tune_step
from ...training.trainer import Settings, Trainer
from .chosen import PLANNED, mode_of
from .machine import Measurement, headline, need_positive
from .timing import interleave, quartiles, seconds_of

PILLOW, DECODED, PACKED, STEP = "Pillow alone", "as it is", "packed", "step"
_RATIOS = (3 / 4, 4 / 3)  # of the crops that Pillow makes, as RandomResizedCrop


@accept_python_values
def bench_data(
    data: str,
    *,
    packed: str | None = None,
    recipe: str = "crossmae",
    size: str | None = None,
    patch: int | None = None,
    image_size: tuple[int, ...] = (),
    batch_size: int = 64,
    images: int = 512,
    workers: int | None = None,
    rounds: int = 3,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    out: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Time the reading and cropping of images, and the steps that they feed; returns and prints the results.

    Rates of reading are those of one core: one thread reads, decodes, crops at random, resizes and flips.

    data: a folder of images, a Parquet file, shards, or scenes
    packed: the same images as `unveil pack` has written them, to compare
    recipe: the recipe whose step consumes them
    size: width and depth of the ViT; by default what pretrain chooses for these images
    patch: side of a patch in pixels; by default what pretrain chooses
    image_size: side of a view in pixels, or its height and width; by default what pretrain chooses
    batch_size: images per step
    images: images of a round, evenly spread over the data
    workers: threads that prepare images beside the steps; by default one for each core
    rounds: turns of everything that is timed
    device: cpu, cuda, cuda:1, mps; auto takes the best
    threads: threads of the processor; by default as many as torch takes
    seed: of weights, crops and masks
    out: a JSON file for every raw time, the machine and the versions
    json: print the same JSON instead of the table
    """
    need_positive(rounds=rounds, workers=workers, batch_size=batch_size, images=images)
    measurement = Measurement(device, threads, out, json)
    shape = {name: value for name, value in (("size", size), ("patch", patch), ("image_size", image_size)) if value}
    with measurement.timing() as facts:
        config = PretrainConfig(recipe=recipe, data=data, seed=seed, recipe_options=shape)
        plan = _plan(config, images, measurement.device)
        plan = replace(plan, batch_size=min(batch_size, len(plan.source)), workers=workers or num_cores())
        sources = {DECODED: plan.source}
        if packed is not None:
            sources[PACKED] = plan.open(packed, images)
        seconds, waits, settings = _measure(plan, sources, measurement.device, rounds)
    number = len(plan.source)
    of_round = {name: plan.batch_size if name == STEP else number for name in seconds}
    rates = {name: [of_round[name] / taken for taken in times] for name, times in seconds.items()}
    results = {
        **facts,
        **{"data": data, "packed": packed, "images": number},
        **{"recipe": recipe, "view": plan.recipe.view.image_size, "batch_size": plan.batch_size},
        **{"chosen": mode_of(settings), "workers": plan.workers},
        **{"images_per_second": rates, "waiting": waits},
    }
    measurement.deliver(results, _text(results))
    return results


@dataclass(frozen=True)
class _Plan:
    """The data, and the recipe with the shape that `pretrain` chooses for them."""

    config: PretrainConfig
    source: Source
    modalities: tuple[Modality, ...]
    recipe: Recipe
    batch_size: int = 1
    workers: int = 1

    def open(self, address: str, images: int) -> Source:
        """A sample of the same data at another address."""
        source = open_data(address, declared_for(self.config, load_recipe(self.config.recipe)))
        return Subset(source, spread(len(source), images))

    def loader(self, source: Source, workers: int) -> Loader:
        view, seed = self.recipe.view, self.config.seed
        return Loader(source, view, self.batch_size, seed, workers, 0, modality=self.modalities)


def _plan(config: PretrainConfig, images: int, device: torch.device) -> _Plan:
    function = load_recipe(config.recipe)
    config.check_recipe_options(function)
    whole = open_data(config.address, declared_for(config, function))
    sample = Subset(whole, spread(len(whole), images))
    log(f"inspecting {len(sample)} of {len(whole):,} images ...")
    inspection = inspect_data(sample)
    source = Subset(settle(whole, inspection), sample.indices)
    modalities = modalities_of(sample, inspection)
    auto = AutoConfig(function, config.recipe_options)
    configure_shape(auto, inspection, len(whole), device)
    configure_size(auto)
    torch.manual_seed(config.seed)
    return _Plan(config, source, modalities, build_once(build_recipe(function, modalities, auto.options)))


def _measure(
    plan: _Plan, sources: Mapping[str, Source], device: torch.device, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], Settings]:
    """The seconds of a pass of one core over each source, and of a step; the shares of a training that waits."""
    optim = replace(plan.recipe.optim, batch_size=plan.batch_size)
    recipe = replace(plan.recipe, optim=optim)
    config = PretrainConfig(recipe=plan.config.recipe, device=str(device), threads=torch.get_num_threads())
    settings, _ = tune_step(config, recipe, plan.modalities, device)
    if device.type == "cpu":
        settings, _ = choose_fastest(config, recipe, settings, plan.modalities, PLANNED)
    trainer = Trainer(recipe.stages[0].build(), optim, settings)
    with closing(plan.loader(plan.source, plan.workers).endless()) as batches:
        batch = next(batches)

    def step(batch: Batch) -> None:
        trainer.model.before_step(0, 0.5)
        trainer.update(batch, 0.0)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    acts: dict[str, Callable[[], object]] = {}
    encoded = _encoded(plan.source)
    if encoded is not None:
        acts[PILLOW] = lambda: pillow_pass(*encoded, plan.recipe.view.image_size, plan.config.seed)
    acts |= {name: lambda source=source: _pass(plan.loader(source, 1)) for name, source in sources.items()}  # type: ignore[misc]
    acts[STEP] = lambda: step(batch)
    waits: dict[str, list[float]] = {name: [] for name in sources}

    def after_round(done: int, of: int) -> None:
        for name, source in sources.items() if done else ():
            waits[name].append(_waiting(plan.loader(source, plan.workers), step))
        log(f"round {done} of {of}" if done else "warmed up")

    seconds = interleave({name: partial(seconds_of, act) for name, act in acts.items()}, rounds, 1, after_round)
    return seconds, waits, settings


def _pass(loader: Loader) -> None:
    with closing(loader.batches(0)) as batches:
        for _ in batches:
            pass


def _waiting(loader: Loader, step: Callable[[Batch], None]) -> float:
    """The share of the time of steps on a loader's batches, after the first, in which they wait for the next."""
    with closing(loader.endless()) as batches:
        step(next(batches))
        began, waited = time.perf_counter(), loader.wait_seconds
        for _ in range(max(2, loader.steps_per_epoch)):
            step(next(batches))
        return (loader.wait_seconds - waited) / (time.perf_counter() - began)


def _encoded(source: Source) -> tuple[EncodedSource, Sequence[int]] | None:
    """The files of a source and which of them it has; None where Pillow could not read it as one file an image."""
    whole, numbers = origin(source)
    is_plain = isinstance(whole, EncodedSource) and not isinstance(whole, SampleSource)
    return (cast("EncodedSource", whole), numbers) if is_plain else None


def pillow_pass(source: EncodedSource, numbers: Sequence[int], size: tuple[int, int], seed: int) -> None:
    """Each image opened, converted to RGB, cropped at random, resized and flipped by Pillow, as torchvision does it."""
    rng = np.random.default_rng(seed)
    for number in numbers:
        with open_image(io.BytesIO(source.encoded(number))) as image:
            pixels = image.convert("RGB")
        box = random_box(rng, pixels.size)
        view = pixels.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.asarray(view).transpose(2, 0, 1).copy()


def random_box(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A random crop (left, top, right, bottom) of 20 % to 100 % of the area, its sides at 3:4 to 4:3."""
    width, height = size
    area = rng.uniform(0.2, 1.0) * width * height
    ratio = np.exp(rng.uniform(*np.log(_RATIOS)))
    w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
    left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
    return int(left), int(top), int(left + max(1, w)), int(top + max(1, h))


def _text(results: Mapping[str, Any]) -> str:
    rates = results["images_per_second"]
    consumed = quartiles(rates[STEP]).median
    rows = [["read by one core", "images/s", "times Pillow", "cores for a step", "waiting"]]
    for name in (PILLOW, DECODED, PACKED):
        if name not in rates:
            continue
        rate = quartiles(rates[name]).median
        pairs = zip(rates[name], rates.get(PILLOW, ()), strict=False)
        times = [own / other for own, other in pairs]
        waits = results["waiting"].get(name)
        rows.append(
            [
                name,
                f"{rate:.0f}",
                f"{quartiles(times).median:.2f}" if times else "-",
                f"{consumed / rate:.2f}",
                f"{quartiles(waits).median:.1%}" if waits else "-",
            ]
        )
    height, width = results["view"]
    lines = [
        headline(results),
        f"  {results['images']} images of {results['data']}, views of {height} x {width}",
        "",
        console.table(rows),
        "",
        f"a step of {results['recipe']} ({results['chosen']}) on {results['batch_size']} images that are there consumes"
        f" {consumed:.0f} images/s; waiting is the share of a training's time, {results['workers']}"
        f" {plural('thread', results['workers'])} reading",
    ]
    if PILLOW not in rates:
        lines.append("Pillow was not timed: these are not images of one file each")
    return "\n".join(lines)
