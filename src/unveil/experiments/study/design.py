"""The design of a study: arms, settings, seeds and protocols as records, and the scales of the built-in studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

ScaleName = Literal["smoke", "cpu", "gpu", "paper"]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class RunOf:
    """An option's value: the folder of another arm's run, in the same setting and of the same seed, trained before."""

    arm: str


@dataclass(frozen=True)
class Share:
    """An option's value: this share of the run's epochs; of `epochs` itself, this share of the scale's.

    `stage1_epochs=Share(0.25)` fits runs of any length.
    """

    of_epochs: float


@dataclass(frozen=True)
class Times:
    """An option's value: so many times what the scale or the setting says, or else the recipe; of sizes, each side."""

    factor: int


@dataclass(frozen=True)
class Arm:
    """One of the things compared: a recipe with some of its options. Arguments of `pretrain` count as options."""

    name: str
    recipe: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What all arms are compared in: images, labelled images, and options of those recipes that have them.

    `data` is trained on; None leaves it to `--data`. `labelled` and `test_data` are for evaluation, by default the
    same images. `dense` are images with a label per pixel, for segmentation and depth, by default those trained on,
    `videos` those with masks of objects, for video segmentation: a folder, or scenes, which are rendered.
    `boxes` those with boxes, for detection. `images` is the number of images, for an estimate where the data are not on
    this machine.
    """

    name: str
    data: str | None = None
    labelled: str | None = None
    test_data: str | None = None
    options: Options = field(default_factory=dict)
    images: int | None = None
    dense: str | None = None
    videos: str | None = None
    boxes: str | None = None


@dataclass(frozen=True)
class Scale:
    """How large a study is: settings, seeds, protocols and their options, options of all runs, which arms take part.

    `evaluation` holds arguments of `evaluate`, such as pool and limit. `analyses` are those of `unveil analyze` with
    their arguments: attention, or features beside those of another run, `{"features": {"run_b": RunOf("MAE")}}`. No
    `arms` means all. With `minutes` every run trains for that time, whatever a step of its arm costs: epochs follow
    from steps that are timed once, before the first run. `along` are protocols that measure the weights saved during
    training, with `save_every` among the options.
    """

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocols: Mapping[str, Options] = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    evaluation: Options = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    analyses: Mapping[str, Options] = field(default_factory=dict)
    minutes: float | None = None
    along: Mapping[str, Options] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, the baseline that all others are compared with, and its scales.

    `time_to` names a metric, such as "knn accuracy", where the question is how soon it is reached: it is measured along
    the runs, or the settings are the same run at several lengths, the longest last.
    """

    question: str
    arms: tuple[Arm, ...]
    baseline: str
    scales: Mapping[ScaleName, Scale]
    note: str = ""
    time_to: str | None = None

    def arms_at(self, scale: ScaleName) -> tuple[Arm, ...]:
        """The arms that take part at a scale."""
        chosen = self.scales[scale].arms
        return tuple(arm for arm in self.arms if not chosen or arm.name in chosen)


# The scales of the built-in studies: a test, two processor cores, one GPU, the published experiment.
IMAGENET = 1_281_167  # training images
NONE: dict[str, Any] = {}
KNN: dict[str, Options] = {"knn": {}}
KNN_AND_LINEAR: dict[str, Options] = {"knn": {}, "linear": {}}
PUBLISHED: dict[str, Options] = {"linear": {}, "finetune": {}}
PUBLISHED_MULTIMAE: dict[str, Options] = {"linear": {}, "finetune": {"preset": "multimae"}}
EQUAL_TIME = {"smoke": 0.005, "cpu": 5.0, "gpu": 10.0}  # minutes of a run
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
CROSSMAE_ABLATION = {"epochs": 400, "warmup_epochs": 20}  # the runs of CrossMAE's tables


def rendered(name: str, count: int, size: int, options: Options = NONE) -> Setting:
    """A setting of rendered scenes, evaluated on a quarter as many of another seed, whose pixels have labels too."""
    train, test = (f"scenes:count={n},size={size},seed={seed}" for n, seed in ((count, 0), (max(20, count // 4), 1)))
    return Setting(name, train, test_data=test, options=options, dense=test)


def scales(
    *,
    arms: Mapping[str, tuple[str, ...]] = NONE,
    cpu_seeds: int = 3,
    shared: Options = NONE,
    smoke: Options = NONE,
    cpu: Options = NONE,
    gpu: Options = NONE,
    paper: Options = NONE,
    settings: Mapping[str, Options] = NONE,
    photographs: bool = False,
    protocols: Mapping[str, Options] = KNN_AND_LINEAR,
    smoke_protocols: Mapping[str, Options] = KNN,
    published: Mapping[str, Options] = PUBLISHED,
    analyses: Mapping[str, Options] = NONE,
    minutes: Mapping[str, float] = NONE,
    along: Mapping[str, Options] = NONE,
    magnified: int = 1,
) -> dict[ScaleName, Scale]:
    """Scenes at smoke, cpu and gpu, and ImageNet-1K at paper. A study has 12 runs at most at cpu.

    `smoke`, `cpu`, `gpu` and `paper` are options on top of each scale's own, `shared` those of the first three. Every
    scale has the epochs of its runs, so that no recipe's own number counts. All arms take part, or at some scales
    these `arms`. Scenes are rendered `magnified` times as
    large as their scale's images.
    `settings`, on a GPU and as published, are settings by name that differ in these options, such as sizes. With
    `photographs` there is a second such set on a GPU, of images that the user gives. `analyses` and measurements
    `along` the runs are made at every scale; `minutes` are those of a run, at the scales of equal time.
    """
    named = [(f" {name}".rstrip(), options) for name, options in (settings or {"": NONE}).items()]
    on_smoke = (rendered("scenes", 40, 32 * magnified),)
    on_cpu = (rendered("scenes", 4000, magnified * (48 if cpu.get("image_size") == (48,) else 32)),)
    on_gpu = [rendered(f"scenes{name}", 20_000, 64 * magnified, options) for name, options in named]
    for name, options in named if photographs else ():
        on_gpu.append(Setting(f"photographs{name}", options=options, dense=on_gpu[0].dense))
    imagenet = tuple(Setting(f"ImageNet-1K{name}", images=IMAGENET, options=options) for name, options in named)
    seeds = (0, 1, 2)
    by_name: dict[ScaleName, Scale] = {
        "smoke": Scale(on_smoke, (0, 1), smoke_protocols, {**SMOKE, **shared, **smoke}),
        "cpu": Scale(on_cpu, tuple(range(cpu_seeds)), protocols, {**CPU, **shared, **cpu}),
        "gpu": Scale(tuple(on_gpu), seeds, protocols, {**GPU, **shared, **gpu}),
        "paper": Scale(imagenet, seeds, published, {"paper": True, "epochs": 800, **paper}),
    }
    return {
        name: replace(at, arms=arms.get(name, ()), analyses=analyses, minutes=minutes.get(name), along=along)
        for name, at in by_name.items()
    }


def maps(**given: Any) -> dict[ScaleName, Scale]:
    """The scales of studies of several modalities: fewer patches of each on a processor; as published, on ImageNet for
    the 400 epochs of training from scratch, and fine-tuned with MultiMAE's settings."""
    own = {
        "cpu": {**MAPS, "decoder_depth": 1, **given.get("cpu", {})},
        "paper": {"epochs": 400, **given.get("paper", {})},
    }
    return scales(**{"published": PUBLISHED_MULTIMAE, **given, **own})
