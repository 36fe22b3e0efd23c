"""Continuing a training: what the learning rate does with weights that were trained before."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from ..recipes.recipe import Recipe
from ..runs.folder import read_metadata
from .autoconfig import AutoConfig
from .config import Continue, PretrainConfig

RAISED = 10.0  # the rate of x10, in tails
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS, _WHOLE = 40, 200  # intervals of a run, and of the training that it is the tail of


@dataclass(frozen=True)
class Before:
    """The training that a run goes on from: its length in epochs, and what is known of its schedule."""

    epochs: float
    lr: float | None = None
    warmup_epochs: float | None = None


def find_before(asked: PretrainConfig) -> Before | None:
    """What `--init-from` says of its training; None where the schedule begins anew.

    Raises ValueError where its length is neither given nor known.
    """
    if asked.continue_schedule == "restart" or asked.init_from is None:
        return None
    path = Path(asked.init_from).expanduser()
    told = read_metadata(path).get("optim", {}) if path.is_dir() else {}
    states = sorted(path.glob("checkpoints/step-*/state.json")) if told else []
    epochs = asked.init_epoch
    if epochs is None:
        if not states:
            raise ValueError(
                f"how long {asked.init_from} was trained is not known; give its epochs with --init-epoch, such as 1600"
            )
        epochs = told.get("trained_epochs", 0.0) + json.loads(states[-1].read_text())["epoch"]
    rate = told["lr"] * told["lr_factor"] if told else None
    return Before(epochs, rate, told.get("warmup_epochs"))


def keep_schedule(plan: AutoConfig, before: Before) -> None:
    """Let the rate and the warm-up be those of the first training, where they are known, else the paper's."""
    for dial, value in (("lr", before.lr), ("warmup_epochs", before.warmup_epochs)):
        plan.hold(dial, plan.dials.get(dial) if value is None else value, "of the training that goes on")
    if before.lr is not None:
        plan.hold("lr_scale", "none", "the rate is that of the training that goes on")


def resume_schedule(built: Recipe, schedule: Continue, epochs: float) -> Recipe:
    """A recipe whose schedule began so many epochs ago; with x10, at ten times the rate."""
    if schedule == "restart":
        return built
    if built.restart:
        raise ValueError("a schedule that restarts in every stage has no tail to ride; give one of the two")
    factor = built.optim.lr_factor * (RAISED if schedule == "x10" else 1.0)
    return replace(built, optim=replace(built.optim, trained_epochs=epochs, lr_factor=factor))


def schedule_of(built: Recipe) -> list[tuple[float, float]]:
    """Points of the run's schedule: epochs, counted from the first training's start, and the learning rate there."""
    optim, lengths = built.optim, [stage.epochs for stage in built.stages] if built.restart else [built.epochs]
    ends = list(accumulate(lengths))
    points = []
    for i in range(_COLUMNS + 1):
        epoch = built.epochs * i / _COLUMNS
        stage = min(bisect_right(ends, epoch), len(ends) - 1)
        rate = optim.rate(epoch - ends[stage] + lengths[stage], lengths[stage], 1)
        points.append((optim.trained_epochs + epoch, rate))
    return points


def schedule_facts(built: Recipe, schedule: Continue) -> dict[str, list[tuple[float, float]]]:
    """The schedule as `run.json` keeps it: of this run, and of the whole training that it rides the tail of."""
    optim, first = built.optim, built.optim.trained_epochs
    if not first:
        return {"run": schedule_of(built)}
    whole, raised = first + built.epochs, RAISED if schedule == "x10" else 1.0
    epochs = [whole * i / _WHOLE for i in range(_WHOLE + 1)]
    return {
        "run": schedule_of(built),
        "whole": [(epoch, optim.rate(epoch - first, built.epochs, 1) / raised) for epoch in epochs],
    }


def schedule_lines(built: Recipe) -> list[str]:
    """The learning rate over the run, in words and drawn."""
    points = schedule_of(built)
    at = [rate for _, rate in points]
    highest = max(at)
    drawn = "".join(_BARS[round(rate / highest * (len(_BARS) - 1))] if highest else _BARS[0] for rate in at)
    return [
        f"  learning rate from epoch {points[0][0]:g} to {points[-1][0]:g}: begins at {at[0]:.1e}, at most"
        f" {highest:.1e}, ends at {at[-1]:.1e}",
        f"  {drawn}",
    ]
