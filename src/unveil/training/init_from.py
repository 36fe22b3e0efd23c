"""The learning-rate schedule that a run takes over from an earlier training (`--init-from`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from ..recipes.recipe import Recipe
from ..recipes.run import Run
from ..runs.console import log, user_path
from .autoconfig import AutoConfig
from .config import Continue, PretrainConfig

RAISED = 10.0  # the factor of --continue-schedule x10
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS, _WHOLE = 40, 200  # points of a run's schedule, and of the whole training that it continues


@dataclass(frozen=True)
class PreviousTraining:
    """The training that a run continues: its length in epochs, and the stored options of its schedule and optimiser."""

    epochs: float
    options: Mapping[str, Any] = field(default_factory=dict)


def previous_training(config: PretrainConfig) -> PreviousTraining | None:
    """The training of `--init-from`; None where the schedule starts anew.

    Raises ValueError where its length is neither given nor stored.
    """
    if config.continue_schedule == "restart" or config.init_from is None:
        return None
    path = user_path(config.init_from)
    run = Run.open(path, config.trust) if (path / "run.json").exists() else None
    stored = run.config.schedule if run else None
    epochs = config.init_epoch
    if epochs is None and run is not None and stored is not None:
        epochs = stored.trained_epochs + run.checkpoint().state["epoch"]
    if epochs is None:
        raise ValueError(
            f"how long {config.init_from} was trained is not known; give its epochs with --init-epoch, such as 1600"
        )
    if stored is None:
        return PreviousTraining(epochs)
    own = {"warmup_epochs": stored.warmup_epochs, "min_lr": stored.min_lr, "optimizer": stored.optimizer}
    return PreviousTraining(epochs, {"lr": stored.lr * stored.lr_factor, **own})


def keep_schedule(auto: AutoConfig, previous: PreviousTraining) -> None:
    """Fix schedule and optimiser to those of the previous training where they are known, else to the paper's."""
    for option in ("lr", "warmup_epochs", "min_lr", "optimizer"):
        value = previous.options.get(option, auto.options.get(option))
        auto.fix(option, value, "of the training that is continued")
    if previous.options:
        auto.fix("lr_scale", "none", "the rate is that of the training that is continued")


def resume_schedule(recipe: Recipe, schedule: Continue, epochs: float) -> Recipe:
    """A recipe that resumes the cosine schedule after so many epochs; with x10, at ten times the rate."""
    if schedule == "restart":
        return recipe
    if recipe.restart:
        raise ValueError(
            f"--continue-schedule {schedule} resumes one cosine schedule, and this recipe restarts it in every stage;"
            " leave one of the two out"
        )
    factor = recipe.optim.lr_factor * (RAISED if schedule == "x10" else 1.0)
    return replace(recipe, optim=replace(recipe.optim, trained_epochs=epochs, lr_factor=factor))


def check_schedule(recipe: Recipe) -> None:
    """Warn where the rate never reaches its peak. Raises ValueError where it would end above its peak."""
    optim, lengths = recipe.optim, [stage.epochs for stage in recipe.stages] if recipe.restart else [recipe.epochs]
    if optim.min_lr > optim.peak_lr:
        raise ValueError(
            f"--min-lr {optim.min_lr:g}: a rate of at most the peak is needed, {optim.peak_lr:.3g}, which is --lr times"
            " --batch-size / 256; give a lower --min-lr, or a higher --lr"
        )
    if optim.warmup_epochs >= optim.trained_epochs + min(lengths):
        of = "shortest stage" if recipe.restart else "run"
        log(
            f"warning: the learning rate warms up for {optim.warmup_epochs:g} epochs and the {of} has"
            f" {min(lengths):g}, so it never reaches its peak of {optim.peak_lr:.2e}; give fewer --warmup-epochs, or"
            " more --epochs"
        )


def check_rate(auto: AutoConfig, previous: PreviousTraining | None) -> None:
    """Raise ValueError where an optimiser whose rates are not AdamW's would get one that was made for AdamW."""
    rates = {auto.defaults.get("optimizer"), previous and previous.options.get("optimizer")}  # whose there are
    if auto.options.get("optimizer") == "sgd" and "lr" not in auto.given and "sgd" not in rates:
        raise ValueError(
            "--optimizer sgd needs a rate of its own: the recipe's is AdamW's; give --lr, such as --lr 0.1, per 256"
            " images of the batch"
        )


def schedule_of(recipe: Recipe) -> list[tuple[float, float]]:
    """Points of the run's schedule: epochs, counted from the first training's start, and the learning rate there."""
    optim, lengths = recipe.optim, [stage.epochs for stage in recipe.stages] if recipe.restart else [recipe.epochs]
    ends = list(accumulate(lengths))
    points = []
    for i in range(_COLUMNS + 1):
        epoch = recipe.epochs * i / _COLUMNS
        stage = min(bisect_right(ends, epoch), len(ends) - 1)
        rate = optim.rate(epoch - ends[stage] + lengths[stage], lengths[stage], 1)
        points.append((optim.trained_epochs + epoch, rate))
    return points


def schedule_metadata(recipe: Recipe, schedule: Continue) -> dict[str, list[tuple[float, float]]]:
    """The schedule as `run.json` stores it: of this run, and of the whole training that it continues."""
    optim, first = recipe.optim, recipe.optim.trained_epochs
    if not first:
        return {"run": schedule_of(recipe)}
    whole, raised = first + recipe.epochs, RAISED if schedule == "x10" else 1.0
    before = replace(optim, lr_factor=optim.lr_factor / raised)
    epochs = [whole * i / _WHOLE for i in range(_WHOLE + 1)]
    return {
        "run": schedule_of(recipe),
        "whole": [(epoch, before.rate(epoch - first, recipe.epochs, 1)) for epoch in epochs],
    }


def schedule_lines(recipe: Recipe) -> list[str]:
    """The learning rate over the run, in numbers and as a bar chart."""
    points = schedule_of(recipe)
    first, last, rates = points[0][0], points[-1][0], [rate for _, rate in points]
    resumed = f", which resumes the cosine schedule at epoch {first:g} of {last:g}" if first else ""
    warms_up = first <= recipe.optim.warmup_epochs <= last
    peak = recipe.optim.peak_lr if warms_up else max(rates)
    bars = (_BARS[round(rate / peak * (len(_BARS) - 1))] if peak else _BARS[0] for rate in rates)
    return [
        f"  learning rate: starts at {rates[0]:.2e}, peak {peak:.2e}, ends at {rates[-1]:.2e}{resumed}",
        f"  {''.join(bars)}",
    ]
