"""A run, or a recipe that has not been run, as a model with samples to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.aligned_folders import open_samples
from ..data.modality_config import BUILT_IN, Declared
from ..data.sources import Source, Subset, open_source, spread
from ..data.splits import hold_out
from ..modeling.masked_model import MaskedModel
from ..modeling.seeding import seed_stage
from ..modeling.types import Modality
from ..recipes.registry import handed, load_recipe
from ..runs.checkpoint import Checkpoint
from ..runs.console import log
from ..runs.hardware import choose_device
from ..training.autoconfig import AutoConfig, configure_shape
from ..training.config import PretrainConfig
from ..training.data_setup import declared_for, look_at, modalities_of, open_data, settle
from ..training.run_metadata import part, read_declared
from .load import known_facts, read_weights, rebuild

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
    address: str,
    data: str | None = None,
    more: tuple[Declared, ...] = (),
    device: str = "auto",
    weights: Checkpoint | None = None,
) -> Opened:
    """A run with its newest weights, or others of its, and with its held-out samples or those of `data`.

    These may have `more` maps than the run reads, such as labels. Raises FileNotFoundError where the folder is no run,
    ValueError where it has no whole checkpoint.
    """
    path = Path(address).expanduser()
    facts = known_facts(path)
    recipe = rebuild(path)
    found = weights or read_weights(path)
    seed_stage(part(facts, "seed", path), found.state["stage"])
    model = recipe.stages[found.state["stage"]].build()
    model.load_state_dict(found.model)
    known = tuple(d.modality for d in read_declared(facts)) or model.encoder.modalities
    samples = samples_of(path, data, more)
    return Opened(path.name, model.eval().to(choose_device(device)), known, samples, found.state["epoch"])


def open_recipe(
    name: str, data: str, modalities: Sequence[str], dials: Mapping[str, Any], device: str = "auto", seed: int = 0
) -> Opened:
    """The last stage of a recipe as it is before any training, fitted to the samples of `data` but for given dials."""
    load = load_recipe(name)
    asked = PretrainConfig(name, data, modalities=tuple(modalities), seed=seed, dials=dials)
    asked.check_dials(load)
    source = open_data(data, declared_for(asked, load))
    found = look_at(Subset(source, spread(len(source), _GLANCE)))
    told, source = modalities_of(source, found), settle(source, found)
    plan = AutoConfig(load, dials)
    where = choose_device(device)
    configure_shape(plan, found, len(source), where)
    for change in plan.changes:
        log(f"  {change.dial}: {change.used}  (paper: {change.paper}; {change.why})")
    seed_stage(seed, -1)
    recipe = load(**handed(load, told), **plan.dials)
    seed_stage(seed, len(recipe.stages) - 1)
    return Opened(name, recipe.stages[-1].build().eval().to(where), told, source)


def samples_of(path: Path, data: str | None = None, more: tuple[Declared, ...] = ()) -> Source:
    """The held-out part of a run's own data; of other data all. `more` maps are read than the run reads itself."""
    facts = known_facts(path)
    told, declared = part(facts, "data", path), read_declared(facts)
    more = tuple(d for d in more if d.name not in {known.name for known in declared})
    read = (*(declared or (BUILT_IN["rgb"],)), *more) if declared or more else ()
    address = data or told["address"]
    source: Source = open_samples(address, read) if read else open_source(address, told["channels"])
    if more:
        source = settle(source, look_at(Subset(source, spread(len(source), _GLANCE))))
    if address != told["address"]:
        return source
    asked = part(facts, "asked", path)
    last, share = asked.get("held_out", "spread") == "last", asked.get("held_out_share", 0.05)
    return hold_out(source, share, part(facts, "seed", path), last=last, group_by=asked.get("group_by"))[1]


def device_of(model: MaskedModel) -> torch.device:
    """Where a model is."""
    return model.encoder.prefix.device
