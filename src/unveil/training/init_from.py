"""What a run takes over from an earlier training (`--init-from`): its weights, and its learning-rate schedule."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from ..modeling.encoder import SIZES
from ..modeling.optim import make_optimizer
from ..modeling.public_vits import (
    BESIDE,
    KeyReport,
    StateDict,
    find_weights,
    is_public_vit,
    load_weights,
    numbered,
    read_weights,
    rename,
    summarise,
    to_own_names,
    with_channels,
)
from ..modeling.types import Modality
from ..recipes.recipe import Recipe
from ..recipes.run import Run
from ..runs.checkpoint import fitting_moments
from ..runs.console import log, user_path
from .autoconfig import AutoConfig
from .config import Continue, PretrainConfig

TOKENS_A_SIDE = 8  # of an image, at least, where the patch is that of given weights
RAISED = 10.0  # the factor of --continue-schedule x10
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS, _WHOLE = 40, 200  # points of a run's schedule, and of the whole training that it continues


@dataclass(frozen=True)
class Initial:
    """What a run starts from: weights, and where it goes on with a schedule of a run of ours, that optimiser's moments,
    as a checkpoint has both."""

    weights: StateDict
    moments: StateDict = field(default_factory=dict)


def read_initial(config: PretrainConfig) -> Initial | None:
    """The tensors of `--init-from`: a run, a weight file or a folder with one, or a name on the hub.

    A run's objectives are named, as another run may number them in another order (`load_weights`).
    """
    if config.init_from is None:
        return None
    path = user_path(config.init_from)
    if is_public_vit(config.init_from):
        return Initial(find_weights(config.init_from).state)
    if not path.is_dir():
        return Initial(read_weights(path))
    run = Run.open(path, config.trust)
    saved = run.checkpoint()
    moments = {} if config.continue_schedule == "restart" else saved.optimizer
    if not any(name.startswith("objectives.1.") for name in saved.model):
        return Initial(saved.model, moments)
    names = [
        (rf"^objectives\.{i}\.", f"objectives.{name}.".replace("\\", r"\\"))
        for i, name in enumerate(_objectives(run, saved.state["stage"]))
    ]
    return Initial(rename(saved.model, names), rename(moments, names))


def _objectives(run: Run, stage: int) -> list[str]:
    """The names of a stage's objectives: as `run.json` has them, or, of an older run, as its recipe says."""
    stages = run.config.content.get("model", {}).get("stages", ())
    if stage < len(stages) and "objectives" in stages[stage]:
        return list(map(str, stages[stage]["objectives"]))
    with torch.device("meta"):
        return [objective.name for objective in run.recipe().stages[stage].build().objectives]


def configure_initial(auto: AutoConfig, initial: Initial, modality: Modality) -> int:
    """Set the size and the patch of the encoder whose weights these are, where they show them and none are given.

    Returns the least side of an image in pixels that gives enough tokens; 0 where the patch stays open.
    """
    state = to_own_names(initial.weights, modality.name)
    blocks = {int(block[1]) for name in state if (block := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    norm = state.get("encoder.blocks.0.norm1.weight")
    for size, (dim, depth, _) in SIZES.items():
        if norm is not None and (len(norm), len(blocks)) == (dim, depth):
            auto.fix("size", size, "that of --init-from")
    projection = state.get(f"encoder.adapters.{modality.name}.proj.weight")
    side = math.isqrt(projection.shape[1] // modality.channels) if projection is not None else 0
    if projection is None or side * side * modality.channels != projection.shape[1] or "patch" in auto.given:
        return 0
    auto.fix("patch", side * modality.stride, "that of --init-from")
    return TOKENS_A_SIDE * side * modality.stride


_LEARNED = "pos_embed"  # a table of positions that are not sines and cosines, which `to_own_names` leaves out


def adapt_weights(initial: Initial, recipe: Recipe, config: PretrainConfig) -> Initial:
    """The weights under our names, and the moments of those that fit; logs which do.

    Raises ValueError when the encoder takes none, or a part of what should be whole and `--allow-missing` is not given.
    """
    first, weights = recipe.encoder.modalities[0], initial.weights
    state = to_own_names(weights, first.name)
    if config.init_channels:
        state = with_channels(state, first.name, first.channels, first.side(recipe.encoder.patch), config.init_channels)
    model = recipe.stages[0].build()
    report = load_weights(model, state)
    log(str(report))
    if not any(name.startswith("encoder.blocks.") for name in report.loaded):
        raise ValueError(
            "--init-from: no weights fit this encoder; give a checkpoint of the same size, or another --size"
        )
    lacking = _lacking(weights, report)
    if lacking == {"left over": [_LEARNED]} and not config.allow_missing:
        raise ValueError(
            "--init-from: this checkpoint has learned positions, and the encoders of recipes read sine and cosine ones;"
            " --allow-missing starts from its other weights, which get used to these in the first epochs"
        )
    if lacking and not config.allow_missing:
        listed = "; ".join(f"{len(names)} {why}: {summarise(names)}" for why, names in lacking.items())
        raise ValueError(
            f"--init-from: this checkpoint does not load whole: {listed}; give the options that it was trained with"
            " (--size, --patch, decoder, modalities; --init-channels for other channels), or --allow-missing to go on"
            " without these tensors"
        )
    moments = fitting_moments(model, make_optimizer(model, recipe.optim), numbered(model, initial.moments))
    if config.continue_schedule != "restart":
        count = len({name.partition(":")[0] for name in moments})
        of = sum(parameter.requires_grad for parameter in model.parameters())
        fresh = "" if count == of else f"; those of the other {of - count} start fresh"
        of_whom = f"  the optimiser's moments of {count} of {of} parameters go on{fresh}"
        log(of_whom if count else "  the optimiser's moments start fresh")
    return Initial(state, moments)


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
