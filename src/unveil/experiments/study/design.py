"""The design of a study: what is compared, in which settings, how often, and how it is measured. Records only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ScaleName = Literal["smoke", "cpu", "gpu", "paper"]
Dials = Mapping[str, Any]


@dataclass(frozen=True)
class RunOf:
    """A dial's value: the folder of another arm's run, in the same setting and of the same seed, trained before."""

    arm: str


@dataclass(frozen=True)
class Share:
    """A dial's value: so much of the run's epochs; of `epochs` itself, so much of the scale's.

    `stage1_epochs=Share(0.25)` fits runs of any length.
    """

    of_epochs: float


@dataclass(frozen=True)
class Arm:
    """One of the things compared: a recipe with some of its dials. Arguments of `pretrain` count as dials."""

    name: str
    recipe: str
    dials: Dials = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What all arms are compared in: images, labelled images, and dials of those recipes that have them.

    `data` is what a run learns from; None leaves it to `--data`. `labelled` and `test_data` are what it is measured
    on, by default the same images. `images` says how many there are, for an estimate where they are not at hand.
    """

    name: str
    data: str | None = None
    labelled: str | None = None
    test_data: str | None = None
    dials: Dials = field(default_factory=dict)
    images: int | None = None


@dataclass(frozen=True)
class Scale:
    """How large a study is: settings, seeds, protocols with their dials, dials of all runs, and which arms take part.

    `evaluation` holds arguments of `evaluate`, such as pool and limit. `analyses` are parts of `unveil analyze` with
    their arguments: attention, or features beside those of another run, `{"features": {"run_b": RunOf("MAE")}}`. No
    `arms` means all. With `minutes` every run trains for so long, whatever a step of its arm costs: epochs follow from
    steps that are timed once, before the first run. `along` are protocols that measure the weights which runs keep on
    their way, with `save_every` among the dials.
    """

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocols: Mapping[str, Dials] = field(default_factory=dict)
    dials: Dials = field(default_factory=dict)
    evaluation: Dials = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    analyses: Mapping[str, Dials] = field(default_factory=dict)
    minutes: float | None = None
    along: Mapping[str, Dials] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, the one that all others are compared with, and its scales.

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
