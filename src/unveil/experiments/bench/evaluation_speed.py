"""`unveil bench evaluate`: features per second beside the encoder's forward pass alone, and the time of each probe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...commands.load import load
from ...data.sources import Source, Subset, open_source, spread
from ...evaluation.features import extract
from ...evaluation.registry import choose
from ...evaluation.types import Context, EvaluationProtocol, FeatureSplit
from ...modeling.encoder import vit
from ...modeling.image_encoder import ImageEncoder
from ...modeling.types import Pool
from ...recipes.options import accept_python_values
from ...runs import console
from ...runs.console import log, plural
from ...runs.hardware import autocast
from ...runs.run_config import Precision
from .command import preset_of
from .machine import Measurement, headline, need_positive
from .timing import interleave, quartiles, seconds_of

_SHIFT = 0.3  # of a class's mean features, in standard deviations: what probes learn from is neither noise nor easy


@dataclass(frozen=True)
class RandomImages:
    """Images of random bytes in memory: a source that costs nothing to read."""

    pixels: UInt8[Tensor, "N C H W"]
    address: str = "random images"
    labels: list[int] | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    def name(self, index: int) -> str:
        return str(index)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        return self.pixels[index]


@accept_python_values
def bench_evaluate(
    run: str | None = None,
    *,
    data: str | None = None,
    preset: Literal["base", "cifar"] | None = None,
    size: str | None = None,
    patch: int | None = None,
    image_size: tuple[int, ...] = (),
    images: int = 1024,
    micro_batch: int = 256,
    precision: Precision = "auto",
    protocol: tuple[str, ...] = ("knn", "knn-whitened", "linear-lbfgs", "linear"),
    train_images: int = 50_000,
    test_images: int = 10_000,
    classes: int = 10,
    width: tuple[int, ...] = (),
    rounds: int = 3,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    out: str | None = None,
    json: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Time what an evaluation does: features of images, and the probes on them; returns and prints the results.

    The encoder is that of a run or a public ViT, or a ViT of random weights, which costs the same.

    data: images whose decoding is part of the features; by default random ones in memory
    preset: cifar (ViT-tiny/4, 32 pixels, the default) or base (ViT-B/16, 224 pixels), where no run is given
    size: width and depth of the ViT, where no run is given
    patch: side of a patch in pixels, where no run is given
    image_size: side of an image in pixels, or its height and width, where no run is given
    images: how many features are computed in a round
    micro_batch: images in the encoder at once
    precision: of the encoder; auto takes bf16 where the device has it in hardware
    protocol: probes of features to time: knn, knn-whitened, linear-lbfgs, linear
    train_images: features that a probe learns from
    test_images: features that it is tested on
    classes: number of classes of the features, which are random around a mean for each class
    width: numbers in a feature vector, one or several; by default the encoder's, and the 3072 of the raw pixels
    rounds: turns of the forward pass alone and of the features
    device: cpu, cuda, cuda:1, mps; auto takes the best
    threads: threads of the processor; by default as many as torch takes
    seed: of weights, images and features
    out: a JSON file for every raw time, the machine and the versions
    json: print the same JSON instead of the table
    trust: execute the recipe file of a run whose encoder is of classes of its own, where you have not run it before
    """
    counts = {"images": images, "micro_batch": micro_batch, "train_images": train_images, "test_images": test_images}
    need_positive(rounds=rounds, classes=classes, **counts)
    measurement = Measurement(device, threads, out, json)
    probes = choose(protocol)
    if unfit := [name for name, probe in probes.items() if probe.needs != "features"]:
        raise ValueError(f"{', '.join(unfit)} is no probe of features, whose time is asked for; leave it out")
    given = (("size", size), ("patch", patch), ("image_size", image_size))
    shape: dict[str, Any] = {name: value for name, value in given if value}
    if run is not None and (shape or preset):
        raise ValueError(f"{run} has a size, a patch and an image size of its own; give them, or a run")
    torch.manual_seed(seed)
    if run is not None:
        encoder: Any = load(run, device=str(measurement.device), trust=trust)
    else:
        shape = preset_of(preset, "cifar") | shape
        encoder = ImageEncoder(vit(shape["size"], shape["patch"], shape["image_size"])).to(measurement.device)
    source = _source(data, encoder, images, seed)
    with measurement.timing() as facts:
        forward, features = _time_features(encoder, source, micro_batch, precision, rounds)
        widths = width or (encoder.dim, 3072)
        seconds: dict[str, dict[str, float]] = {name: {} for name in probes}
        for dim in widths:
            for name, probe in probes.items():
                size_of = (train_images, test_images, classes, dim)
                seconds[name][str(dim)] = _time_probe(name, probe, encoder, size_of, seed)
    ratio = quartiles([alone / whole for alone, whole in zip(forward, features, strict=True)])
    results = {
        **facts,
        **{"encoder": run or shape, "data": source.address},
        **counts,
        **{"classes": classes, "forward_seconds": forward, "features_seconds": features, "ratio": vars(ratio)},
        "probe_seconds": seconds,
    }
    rows = [
        ["", "images/s", "beside the forward pass alone"],
        ["forward pass alone", f"{len(source) / quartiles(forward).median:.0f}", "1"],
        ["features", f"{len(source) / quartiles(features).median:.0f}", f"{ratio.median:.2f} ({ratio.low:.2f} to"],
    ]
    rows[-1][-1] += f" {ratio.high:.2f})"
    table = [["probe", *(f"{dim} numbers" for dim in widths)]]
    table += [[name, *(f"{seconds[name][str(dim)]:.2f} s" for dim in widths)] for name in probes]
    what = f"{len(source):,} images of {' x '.join(map(str, encoder.image_size))} from {source.address}, {precision}"
    probed = f"{train_images:,} features to learn from, {test_images:,} to test on, {classes}"
    probed += f" {plural('class', classes)}"
    parts = [headline(results), f"  {what}", "", console.table(rows), "", probed, console.table(table)]
    measurement.deliver(results, "\n".join(parts))
    return results


def _source(data: str | None, encoder: Any, images: int, seed: int) -> Source:
    if data is not None:
        source = open_source(data, encoder.channels)
        return Subset(source, spread(len(source), images))
    rng = torch.Generator().manual_seed(seed)
    shape = (images, encoder.channels, *encoder.image_size)
    return RandomImages(torch.randint(256, shape, generator=rng, dtype=torch.uint8))


def _time_features(
    encoder: Any, source: Source, micro_batch: int, precision: Precision, rounds: int
) -> tuple[list[float], list[float]]:
    """The seconds of the forward passes alone, on images that are on the device, and of `extract`, in each round."""
    count, pool = len(source), cast("Pool", "mean")
    shape = (min(count, micro_batch), encoder.channels, *encoder.image_size)
    batch = torch.rand(shape, device=encoder.device)
    sizes = [micro_batch] * (count // micro_batch) + [count % micro_batch] * bool(count % micro_batch)

    def alone() -> None:
        for size in sizes:
            with torch.inference_mode(), autocast(encoder.device, precision):
                features: Float[Tensor, "B D"] = encoder.features(batch[:size], pool)
        features.cpu()

    def whole() -> None:
        extract(encoder, source, pool, micro_batch, precision=precision)

    acts = {act: partial(seconds_of, act) for act in (alone, whole)}
    seconds = interleave(acts, rounds, 1, lambda done, of: None)
    return seconds[alone], seconds[whole]


def _time_probe(
    name: str, probe: EvaluationProtocol, encoder: Any, size: tuple[int, int, int, int], seed: int
) -> float:
    """The seconds of a probe on random features: `size` is those to train on and to test on, classes and width."""
    log(f"timing {name} on features of {size[-1]} numbers ...")
    data = random_features(*size, seed).to(encoder.device)
    return seconds_of(lambda: probe.run(encoder, data, Context(seed)))


def random_features(train: int, test: int, classes: int, width: int, seed: int) -> FeatureSplit:
    """Normal features around a mean for each class, labelled: the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    means = _SHIFT * torch.randn(classes, width, generator=rng)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        return means[labels] + torch.randn(count, width, generator=rng), labels

    return FeatureSplit(*draw(train), *draw(test), classes)
