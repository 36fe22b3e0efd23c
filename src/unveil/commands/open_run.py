"""A run, or a recipe that has not been run, as a model with samples to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.modality_config import Declared
from ..data.sources import Source, Subset, spread
from ..modeling.masked_model import MaskedModel
from ..modeling.seeding import seed_stage
from ..modeling.types import Modality
from ..recipes.registry import build_recipe, load_recipe
from ..recipes.run import Run
from ..runs.console import log
from ..runs.hardware import choose_device
from ..training.autoconfig import AutoConfig, configure_shape
from ..training.config import PretrainConfig
from ..training.data_setup import declared_for, inspect_data, modalities_of, open_data, settle

_GLANCE = 64  # samples that settle what a recipe is to read


@dataclass(frozen=True)
class Opened:
    """A model in eval on its device, what it reads, and samples that it was not trained on."""

    name: str
    model: MaskedModel
    modalities: tuple[Modality, ...]
    samples: Source
    epoch: float | None = None


def open_run(
    run: Run,
    data: str | None = None,
    more: tuple[Declared, ...] = (),
    device: str = "auto",
    epoch: float | None = None,
) -> Opened:
    """A run with its newest weights, or those of an epoch, and what it held out of `data`, by default of its own.

    These may have `more` maps than the run reads, such as labels. Raises ValueError where it has no whole checkpoint.
    """
    model = run.model(epoch=epoch).to(choose_device(device))
    return Opened(run.name, model, run.modalities, run.held_out(data, more), run.checkpoint(epoch).state["epoch"])


def open_recipe(
    name: str, data: str, modalities: Sequence[str], dials: Mapping[str, Any], device: str = "auto", seed: int = 0
) -> Opened:
    """The last stage of a recipe as it is before any training, fitted to the samples of `data` but for given dials."""
    load = load_recipe(name)
    config = PretrainConfig(name, data=data, modalities=tuple(modalities), seed=seed, recipe_options=dials)
    config.check_recipe_options(load)
    source = open_data(data, declared_for(config, load))
    found = inspect_data(Subset(source, spread(len(source), _GLANCE)))
    told, source = modalities_of(source, found), settle(source, found)
    auto = AutoConfig(load, dials)
    where = choose_device(device)
    configure_shape(auto, found, len(source), where)
    for change in auto.changes:
        log(f"  {change.dial}: {change.used}  (paper: {change.paper}; {change.why})")
    seed_stage(seed, -1)
    recipe = build_recipe(load, told, auto.options)
    seed_stage(seed, len(recipe.stages) - 1)
    return Opened(name, recipe.stages[-1].build().eval().to(where), told, source)


def device_of(model: MaskedModel) -> torch.device:
    """The device on which the weights of a model are."""
    return model.encoder.prefix.device
