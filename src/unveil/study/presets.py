"""The scales of the built-in studies: what is smoke, what fits two cores, what fits a card, what the papers did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .design import Dials, Scale, ScaleName, Setting

IMAGENET = 1_281_167  # training images
NO_DIALS: dict[str, Any] = {}
KNN_AND_LINEAR: dict[str, Dials] = {"knn": {}, "linear": {}}
PAPER_PROTOCOLS: dict[str, Dials] = {"linear": {}, "finetune": {}}

_SMALL_DECODER = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
SMOKE = {"size": "nano", "patch": 8, "image_size": (32,), "epochs": 1, "batch_size": 16}
CPU = {"size": "nano", "patch": 4, "image_size": (32,), "epochs": 40, "batch_size": 64}
GPU = {"size": "tiny", "patch": 8, "image_size": (64,), "epochs": 100, "batch_size": 256}
_CPU_DECODER = {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3}
_GPU_DECODER = {"decoder_dim": 128, "decoder_depth": 4, "decoder_heads": 4}


def scenes(count: int, size: int, seed: int = 0) -> str:
    """The address of rendered scenes."""
    return f"scenes:count={count},size={size},seed={seed}"


def rendered(name: str, count: int, size: int, dials: Dials = NO_DIALS) -> Setting:
    """A setting of rendered scenes, measured on a quarter as many of another seed."""
    return Setting(name, scenes(count, size), test_data=scenes(max(20, count // 4), size, 1), dials=dials)


def imagenet(name: str = "ImageNet-1K", dials: Dials = NO_DIALS) -> Setting:
    """ImageNet-1K, which a person has to have: `--data FOLDER`, with `train` and `val` inside for its measurement."""
    return Setting(name, images=IMAGENET, dials=dials)


def scales(
    *,
    cpu_arms: tuple[str, ...] = (),
    cpu_seeds: int = 3,
    cpu: Dials = NO_DIALS,
    gpu: Dials = NO_DIALS,
    paper: Dials = NO_DIALS,
    settings: Mapping[str, Dials] = NO_DIALS,
    photographs: bool = False,
    protocols: Mapping[str, Dials] = KNN_AND_LINEAR,
    paper_protocols: Mapping[str, Dials] = PAPER_PROTOCOLS,
) -> dict[ScaleName, Scale]:
    """Scenes as smoke, on a processor and on a card; ImageNet as published. At cpu there are 12 runs at most.

    `cpu`, `gpu` and `paper` are dials on top of each scale's own. `settings` are settings by name that differ in these
    dials, such as lengths; by default there is one. With `photographs`, gpu has a second setting for the user's own.
    """
    shapes = settings or {"scenes": NO_DIALS}
    on_card = [rendered(name, 20_000, 64, dials) for name, dials in shapes.items()]
    if photographs:
        on_card += [
            Setting(name.replace("scenes", "photographs") if "scenes" in name else f"photographs {name}", dials=dials)
            for name, dials in shapes.items()
        ]
    return {
        "smoke": Scale(
            (rendered("scenes", 40, 32),), (0, 1), {"knn": {}}, {**SMOKE, **_SMALL_DECODER, "warmup_epochs": 0.1}
        ),
        "cpu": Scale(
            tuple(rendered(name, 4000, 32, dials) for name, dials in shapes.items()),
            tuple(range(cpu_seeds)), protocols, {**CPU, **_CPU_DECODER, **cpu}, arms=cpu_arms,
        ),
        "gpu": Scale(tuple(on_card), (0, 1, 2), protocols, {**GPU, **_GPU_DECODER, **gpu}),
        "paper": Scale(
            tuple(imagenet(name.replace("scenes", "ImageNet-1K"), dials) for name, dials in shapes.items()),
            (0, 1, 2), paper_protocols, {"paper": True, **paper},
        ),
    }  # fmt: skip
