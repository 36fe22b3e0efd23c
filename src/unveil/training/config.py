"""What a person asks of `unveil pretrain`, checked as far as it can be before anything is opened."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..recipes.registry import options_of
from ..runs.hardware import Precision

Compile = Literal["auto", "on", "off"]
HeldOut = Literal["spread", "last"]
Continue = Literal["restart", "tail", "x10"]
OLD_NAMES = {"signals_every": "val_every", "keep_every": "save_every", "init_bands": "init_channels"}  # release 0.1


@dataclass(frozen=True)
class PretrainConfig:
    """The arguments of `pretrain`. Raises ValueError for a number that no run could have."""

    recipe: str
    data: str = "scenes"
    modalities: tuple[str, ...] = ()
    group_by: str | None = None
    held_out: HeldOut = "spread"
    held_out_share: float = 0.05
    out: str | None = None
    init_from: str | None = None
    init_bands: tuple[str, ...] = ()
    init_epoch: float | None = None
    continue_schedule: Continue = "restart"
    overwrite: bool = False
    paper: bool = False
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    compile: Compile = "auto"
    micro_batch: int | None = None
    workers: int | None = None
    save_minutes: float = 10.0
    signals_every: float | None = None
    keep_every: float | None = None
    max_broken: float = 0.05
    tensorboard: bool = False
    dials: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(self.minutes is None or 0 < self.minutes < math.inf, "--minutes", self.minutes, "a time above 0")
        need(0 <= self.seed < 2**62, "--seed", self.seed, "a whole number, 0 or more")
        need(self.precision in get_args(Precision), "--precision", self.precision, _one_of(Precision))
        need(self.compile in get_args(Compile), "--compile", self.compile, _one_of(Compile))
        need(self.micro_batch is None or self.micro_batch >= 1, "--micro-batch", self.micro_batch, "1 image or more")
        need(self.workers is None or self.workers >= 1, "--workers", self.workers, "1 thread or more")
        need(0 <= self.save_minutes < math.inf, "--save-minutes", self.save_minutes, "a time, 0 for every step")
        for word, every in (("--signals-every", self.signals_every), ("--keep-every", self.keep_every)):
            need(every is None or 0 < every < math.inf, word, every, "a number of epochs above 0")
        need(0 <= self.max_broken <= 1, "--max-broken", self.max_broken, "a share between 0 and 1")
        need(0 < self.held_out_share < 1, "--held-out-share", self.held_out_share, "a share between 0 and 1")
        need(self.held_out in get_args(HeldOut), "--held-out", self.held_out, _one_of(HeldOut))
        if self.init_bands and not self.init_from:
            raise ValueError("--init-bands adapts the weights of --init-from to other bands; give both, or neither")
        schedule, epoch = self.continue_schedule, self.init_epoch
        need(schedule in get_args(Continue), "--continue-schedule", schedule, _one_of(Continue))
        need(epoch is None or 0 < epoch < math.inf, "--init-epoch", epoch, "a number of epochs above 0")
        if schedule != "restart" and not self.init_from:
            raise ValueError("--continue-schedule goes on from the weights of --init-from; give both, or neither")
        if epoch is not None and schedule == "restart":
            raise ValueError("--init-epoch is where --continue-schedule tail or x10 goes on; give one of them with it")
        if self.paper and self.minutes is not None:
            raise ValueError("--paper keeps the paper's epochs, --minutes sets them; give one of the two")

    @property
    def name(self) -> str:
        return Path(self.recipe).stem

    @property
    def is_own_recipe(self) -> bool:
        """Whether the recipe is a file of the user's."""
        return self.recipe.endswith(".py")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes a run this run, as JSON holds it; how it uses the machine, and where its images lie, does not."""
        own = {name: getattr(self, name) for name in ("seed", "paper", "minutes", "init_from")}
        told = (
            "modalities",
            "group_by",
            "held_out",
            "held_out_share",
            "init_bands",
            "init_epoch",
            "continue_schedule",
        )
        # Only what differs from its default: runs that were begun before these were there go on.
        own |= {f.name: json_like(getattr(self, f.name)) for f in fields(self) if f.name in told and self._changed(f)}
        return {"recipe": self.name, **own, **{name: json_like(value) for name, value in self.dials.items()}}

    def _changed(self, f: Field[Any]) -> bool:
        return bool(getattr(self, f.name) != f.default)

    def check_dials(self, recipe: Callable[..., Any]) -> None:
        """Raise ValueError, with the nearest names, for a dial that the recipe has not."""
        known = [option.name for option in options_of(recipe)]
        for dial in self.dials:
            if dial not in known:
                close = difflib.get_close_matches(dial, known, n=3)
                hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(known)}"
                raise ValueError(f"the recipe {self.name} has no dial {dial!r}; {hint}")

    def command(self, run: Path) -> str:
        """The line that continues this run, or begins it in an empty folder."""
        words = ["unveil", "pretrain", self.recipe, "--data", self.data, "--out", str(run)]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("recipe", "data", "out", "overwrite", "dials") and value != f.default:
                words += _flag(f.name, value)
        for name, value in self.dials.items():
            words += _flag(name, value)
        return shlex.join(words)


def need(holds: bool, name: str, came: object, needed: str) -> None:
    """Raise ValueError, in the words that all such errors use, unless a condition holds."""
    if not holds:
        raise ValueError(f"{name} {came}: {needed} is needed")


def json_like(value: Any) -> Any:
    """A value as JSON gives it back: it has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _one_of(kind: Any) -> str:
    return f"one of {', '.join(get_args(kind))}"


def _flag(name: str, value: Any) -> list[str]:
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{word}" if value else f"--no-{word}"]
    if isinstance(value, (tuple, list)):
        return [f"--{word}", *map(str, value)]
    return [f"--{word}", "none" if value is None else str(value)]
