"""The scales of the built-in studies: what is smoke, what fits two cores, what fits a card, what the papers did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .design import Dials, Scale, ScaleName, Setting

IMAGENET = 1_281_167  # training images
NONE: dict[str, Any] = {}
NO_MINUTES: dict[ScaleName, float] = {}
KNN: dict[str, Dials] = {"knn": {}}
KNN_AND_LINEAR: dict[str, Dials] = {"knn": {}, "linear": {}}
PUBLISHED: dict[str, Dials] = {"linear": {}, "finetune": {}}

SMOKE = {
    **{"size": "nano", "patch": 8, "image_size": (32,), "epochs": 1, "batch_size": 16, "warmup_epochs": 0.1},
    **{"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}
CPU = {
    **{"size": "nano", "patch": 4, "image_size": (32,), "epochs": 25, "batch_size": 64},
    **{"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3},
}
GPU = {
    **{"size": "tiny", "patch": 8, "image_size": (64,), "epochs": 100, "batch_size": 256},
    **{"decoder_dim": 128, "decoder_depth": 4, "decoder_heads": 4},
}
MAPS = {"patch": 8, "image_size": (48,)}  # of several modalities on a processor: fewer patches of each


def rendered(name: str, count: int, size: int, dials: Dials = NONE) -> Setting:
    """A setting of rendered scenes, measured on a quarter as many of another seed."""
    learned, judged = (
        f"scenes:count={n},size={size},seed={seed}" for n, seed in ((count, 0), (max(20, count // 4), 1))
    )
    return Setting(name, learned, test_data=judged, dials=dials)


def imagenet(name: str = "ImageNet-1K", dials: Dials = NONE) -> Setting:
    """ImageNet-1K, which a person has to have; for its measurement the folder holds `train` and `val`."""
    return Setting(name, images=IMAGENET, dials=dials)


def scales(
    *,
    cpu_arms: tuple[str, ...] = (),
    cpu_seeds: int = 3,
    smoke_arms: tuple[str, ...] = (),
    gpu_arms: tuple[str, ...] = (),
    paper_arms: tuple[str, ...] = (),
    shared: Dials = NONE,
    smoke: Dials = NONE,
    cpu: Dials = NONE,
    gpu: Dials = NONE,
    paper: Dials = NONE,
    cpu_settings: Mapping[str, Dials] = NONE,
    settings: Mapping[str, Dials] = NONE,
    photographs: bool = False,
    protocols: Mapping[str, Dials] = KNN_AND_LINEAR,
    smoke_protocols: Mapping[str, Dials] = KNN,
    published: Mapping[str, Dials] = PUBLISHED,
    analyses: Mapping[str, Dials] = NONE,
    minutes: Mapping[ScaleName, float] = NO_MINUTES,
    along: Mapping[str, Dials] = NONE,
) -> dict[ScaleName, Scale]:
    """Scenes as smoke, on a processor and on a card, and ImageNet as published. At cpu there are 12 runs at most.

    `smoke`, `cpu`, `gpu` and `paper` are dials on top of each scale's own, `shared` those of the first three.
    `cpu_settings`, and `settings` on a card and as published, are settings by name that differ in these dials, such
    as lengths or sizes. With `photographs` there is a second such set on a card, of images that the user has.
    `analyses` are made at every scale, and measurements `along` the runs. `minutes` are those of a run, at the scales
    where all have equal time.
    """
    several = settings or {"": NONE}
    on_card = [rendered(_named("scenes", name), 20_000, 64, dials) for name, dials in several.items()]
    if photographs:
        on_card += [Setting(_named("photographs", name), dials=dials) for name, dials in several.items()]
    found: dict[ScaleName, Scale] = {
        "smoke": Scale(
            (rendered("scenes", 40, 32),), (0, 1), smoke_protocols, {**SMOKE, **shared, **smoke}, arms=smoke_arms
        ),
        "cpu": Scale(
            tuple(
                rendered(_named("scenes", name), 4000, 48 if cpu.get("image_size") == (48,) else 32, dials)
                for name, dials in (cpu_settings or {"": NONE}).items()
            ),
            tuple(range(cpu_seeds)), protocols, {**CPU, **shared, **cpu}, arms=cpu_arms,
        ),
        "gpu": Scale(tuple(on_card), (0, 1, 2), protocols, {**GPU, **shared, **gpu}, arms=gpu_arms),
        "paper": Scale(
            tuple(imagenet(_named("ImageNet-1K", name), dials) for name, dials in several.items()),
            (0, 1, 2), published, {"paper": True, **paper}, arms=paper_arms,
        ),
    }  # fmt: skip
    return {
        name: replace(scale, analyses=analyses, minutes=minutes.get(name), along=along) for name, scale in found.items()
    }


def _named(data: str, name: str) -> str:
    return f"{data} {name}".strip()


def maps(**given: Any) -> dict[ScaleName, Scale]:
    """The scales of studies of several modalities: fewer patches of each on a processor, as published on ImageNet."""
    return scales(**{**given, "cpu": {**MAPS, "decoder_depth": 1, **given.get("cpu", {})}})
