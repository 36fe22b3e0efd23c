"""What a run takes over from an earlier training (`--init-from`): its weights, and its learning-rate schedule."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from ..modeling.public_vits import (
    BESIDE,
    KeyReport,
    StateDict,
    find_weights,
    is_public_vit,
    load_weights,
    read_weights,
    rename,
    summarise,
    to_own_names,
    with_channels,
)
from ..recipes.recipe import Recipe
from ..recipes.run import Run
from ..runs.console import log, user_path
from .autoconfig import AutoConfig
from .config import Continue, PretrainConfig

RAISED = 10.0  # the factor of --continue-schedule x10
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS, _WHOLE = 40, 200  # points of a run's schedule, and of the whole training that it continues


def read_initial(address: str) -> StateDict:
    """The tensors of a run, of a weight file or of a folder with one, or of a name on the hub.

    A run's objectives are named, as another run may number them in another order (`load_weights`).
    """
    path = user_path(address)
    if is_public_vit(address):
        return find_weights(address).state
    if not path.is_dir():
        return read_weights(path)
    run = Run.open(path)
    saved = run.checkpoint()
    if not any(name.startswith("objectives.1.") for name in saved.model):
        return saved.model
    with torch.device("meta"):
        objectives = run.recipe().stages[saved.state["stage"]].build().objectives
    return rename(saved.model, [(rf"^objectives\.{i}\.", f"objectives.{o.name}.") for i, o in enumerate(objectives)])


def adapt_weights(weights: StateDict, recipe: Recipe, config: PretrainConfig) -> StateDict:
    """The weights under our names; logs which keys fit.

    Raises ValueError when the encoder takes none, or a part of what should be whole and `--allow-missing` is not given.
    """
    first = recipe.encoder.modalities[0]
    state = to_own_names(weights, first.name)
    if config.init_channels:
        state = with_channels(state, first.name, first.channels, first.side(recipe.encoder.patch), config.init_channels)
    report = load_weights(recipe.stages[0].build(), state)
    log(str(report))
    if not any(name.startswith("encoder.blocks.") for name in report.loaded):
        raise ValueError(
            "--init-from: no weights fit this encoder; give a checkpoint of the same size, or another --size"
        )
    if (lacking := _lacking(weights, report)) and not config.allow_missing:
        listed = "; ".join(f"{len(names)} {why}: {summarise(names)}" for why, names in lacking.items())
        raise ValueError(
            f"--init-from: this checkpoint does not load whole: {listed}; give the options that it was trained with"
            " (--size, --patch, decoder, modalities; --init-channels for other channels), or --allow-missing to go on"
            " without these tensors"
        )
    return state


def _lacking(weights: StateDict, report: KeyReport) -> dict[str, list[str]]:
    """What the checkpoint and the model should share and do not, by the reason.

    That is the encoder, except that methods differ in its final norm and in the modalities that it reads, and, where
    the checkpoint is one of the same method, the decoders and heads: their tensors then have the same names up to
    numbers.
    """

    def kinds(names: Iterable[str]) -> set[str]:
        return {re.sub(r"\.\d+\.", ".", name) for name in names if name.startswith("decoders.")}

    fitting = (*report.loaded, *report.reshaped)
    ours, theirs = kinds((*fitting, *report.missing)), kinds((*fitting, *report.unexpected))
    is_same_method = bool(theirs) and ours == theirs
    blocks = re.compile(r"encoder\.(?!norm\.|adapters\.)")

    def counts(name: str) -> bool:
        return is_same_method or blocks.match(name) is not None

    is_own = "encoder.prefix" in weights  # what else such weights hold belongs to its masking or its teacher
    lacking = {
        "missing": [name for name in report.missing if counts(name)],
        "of another shape": [name for name in report.reshaped if name.startswith("encoder.") or is_same_method],
        "left over": [
            name
            for name in report.unexpected
            if blocks.match(name)
            or not (is_own or BESIDE.match(name) or name.startswith("encoder."))
            or (is_same_method and name.startswith(("encoder.", "decoders.", "objectives.")))
        ],
    }
    return {why: names for why, names in lacking.items() if names}


@dataclass(frozen=True)
class PreviousTraining:
    """The training that a run continues: its length in epochs, and its peak rate and warm-up where they are known."""

    epochs: float
    lr: float | None = None
    warmup_epochs: float | None = None


def previous_training(config: PretrainConfig) -> PreviousTraining | None:
    """The training of `--init-from`; None where the schedule starts anew.

    Raises ValueError where its length is neither given nor stored.
    """
    if config.continue_schedule == "restart" or config.init_from is None:
        return None
    path = user_path(config.init_from)
    run = Run.open(path) if (path / "run.json").exists() else None
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
    return PreviousTraining(epochs, stored.lr * stored.lr_factor, stored.warmup_epochs)


def keep_schedule(auto: AutoConfig, previous: PreviousTraining) -> None:
    """Fix the rate and the warm-up to those of the previous training where they are known, else to the paper's."""
    for option, value in (("lr", previous.lr), ("warmup_epochs", previous.warmup_epochs)):
        auto.fix(option, auto.options.get(option) if value is None else value, "of the training that is continued")
    if previous.lr is not None:
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
    epochs = [whole * i / _WHOLE for i in range(_WHOLE + 1)]
    return {
        "run": schedule_of(recipe),
        "whole": [(epoch, optim.rate(epoch - first, recipe.epochs, 1) / raised) for epoch in epochs],
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
