"""Continuing a training: what the learning rate does with weights that were trained before."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from .asked import Asked, Continue
from .plan import Plan
from .recipe import Recipe
from .runs import read_facts

RAISED = 10.0  # the rate of x10, in tails
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 40


@dataclass(frozen=True)
class Before:
    """The training that a run goes on from: its length in epochs, and what is known of its schedule."""

    epochs: float
    lr: float | None = None
    warmup_epochs: float | None = None


def find_before(asked: Asked) -> Before | None:
    """What `--init-from` says of its training; None where the schedule begins anew.

    Raises ValueError where its length is neither given nor known.
    """
    if asked.continue_schedule == "restart" or asked.init_from is None:
        return None
    path = Path(asked.init_from).expanduser()
    told = read_facts(path).get("optim", {}) if path.is_dir() else {}
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


def keep_schedule(plan: Plan, before: Before) -> None:
    """Let the rate and the warm-up be those of the first training, where they are known, else the paper's."""
    for dial, value in (("lr", before.lr), ("warmup_epochs", before.warmup_epochs)):
        plan.hold(dial, plan.dials.get(dial) if value is None else value, "of the training that goes on")
    if before.lr is not None:
        plan.hold("lr_scale", "none", "the rate is that of the training that goes on")


def on_the_tail(built: Recipe, schedule: Continue, epochs: float) -> Recipe:
    """A recipe whose schedule began so many epochs ago; with x10, at ten times the rate."""
    if schedule == "restart":
        return built
    if built.restart:
        raise ValueError("a schedule that restarts in every stage has no tail to ride; give one of the two")
    factor = built.optim.lr_factor * (RAISED if schedule == "x10" else 1.0)
    return replace(built, optim=replace(built.optim, trained_epochs=epochs, lr_factor=factor))


def schedule_lines(built: Recipe) -> list[str]:
    """The learning rate over the run, in words and drawn."""
    optim, epochs = built.optim, built.epochs
    at = [optim.rate(epochs * i / _COLUMNS, epochs, 1) for i in range(_COLUMNS + 1)]
    highest = max(at)
    drawn = "".join(_BARS[round(rate / highest * (len(_BARS) - 1))] if highest else _BARS[0] for rate in at)
    first = optim.trained_epochs
    return [
        f"  learning rate from epoch {first:g} to {first + epochs:g}: begins at {at[0]:.1e}, at most {highest:.1e},"
        f" ends at {at[-1]:.1e}",
        f"  {drawn}",
    ]
