"""The content of `run.json`: data, model and settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .._version import __version__
from ..data.sources import SampleSource, Source
from ..data.splits import names_digest
from ..modeling.encoder import Encoder
from ..modeling.layers import Positions
from ..modeling.masked_model import MaskedModel, Objective, mean_loss
from ..modeling.targets import Pixels
from ..modeling.types import Layout, Modality
from ..recipes.recipe import Recipe
from ..recipes.stored_encoder import encoder_metadata
from ..runs.hardware import git_commit, num_cores, versions
from ..runs.run_config import current_names
from .autoconfig import AutoConfig
from .config import PretrainConfig, json_like
from .init_from import schedule_metadata
from .timing import random_batch
from .trainer import Settings


def run_metadata(
    config: PretrainConfig,
    auto: AutoConfig,
    modalities: Sequence[Modality],
    data: tuple[Source, Source, Source],
    recipe: Recipe,
    model: Mapping[str, Any],
    settings: Settings,
    processes: int,
) -> dict[str, Any]:
    """The content of a new run's `run.json`. `data`: all samples, those to train on, and those held out."""
    source, train, held_out = data
    first = modalities[0]
    return {
        "unveil": __version__,
        "recipe": config.name,
        "given": config.fingerprint,
        "options": {name: json_like(value) for name, value in auto.options.items()},
        "modality": asdict(first),
        **({"modalities": [asdict(d) for d in source.declared]} if isinstance(source, SampleSource) else {}),
        "changes": [asdict(change) for change in auto.changes],
        "data": {
            "address": source.address,
            "count": len(source),
            "names": names_digest(source),
            "train": len(train),
            "held_out": len(held_out),
            "image_size": list(recipe.view.image_size),
            "channels": first.channels,
            "mean": list(first.mean),
            "std": list(first.std),
        },
        "encoder": encoder_metadata(recipe.encoder),
        "model": model,
        "settings": settings_metadata(settings, recipe.optim.batch_size, config.workers, processes),
        "optim": asdict(recipe.optim) | {"peak_lr": recipe.optim.peak_lr},
        "schedule": schedule_metadata(recipe, config.continue_schedule),
        "seed": config.seed,
        "versions": versions(torch.device(settings.device)),
        "git": git_commit(),
    }


def layout_of(encoder: Encoder) -> Layout:
    """The encoder's tokens: one span of cells for each modality."""
    cells = encoder.grid[0] * encoder.grid[1]
    spans = {m.name: slice(i * cells, (i + 1) * cells) for i, m in enumerate(encoder.modalities)}
    return Layout(spans, encoder.grid)


def model_metadata(recipe: Recipe, modalities: Sequence[Modality]) -> dict[str, Any]:
    """Parameters, tokens and masks; for each stage its trained parameters, its teachers and FLOPs per image."""
    built = [stage.build() for stage in recipe.stages]
    model = built[0]
    targets = [o.target for o in model.objectives if isinstance(o, Objective)]
    layout = layout_of(model.encoder)
    visible, predicted = model.masker.counts(layout)
    return {
        "parameters": {"encoder": trained(model.encoder), "decoder": trained(model) - trained(model.encoder)},
        "heads": model.encoder.blocks[0].attn.heads,
        "num_tokens": layout.num_tokens,
        "num_visible": visible,
        "num_predicted": predicted,
        "norm_pix": any(isinstance(t, Pixels) and t.norm_pix for t in targets),
        "stages": [
            {
                "epochs": stage.epochs,
                "objectives": [objective.name for objective in model.objectives],
                "trained": trained(model),
                "guides": guides(model),
                "flops": _flops_or_none(model, modalities, recipe.view.image_size),
            }
            for stage, model in zip(recipe.stages, built, strict=True)
        ],
    }


def _flops_or_none(model: MaskedModel, modalities: Sequence[Modality], size: tuple[int, int]) -> int | None:
    try:
        return flops(model, modalities, size)
    except (RuntimeError, NotImplementedError):  # a module of the user's needs values, not shapes
        return None


def trained(module: nn.Module) -> int:
    """The number of parameters that training changes."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def guides(model: MaskedModel) -> int:
    """The number of weights in frozen and EMA teachers, without position tables."""
    modules = (m for m in cast("nn.ModuleDict", model.teachers).modules() if not isinstance(m, Positions))
    held = (t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False)))
    return sum(t.numel() for t in held if not t.requires_grad)


def flops(model: MaskedModel, modalities: Sequence[Modality], size: tuple[int, int]) -> int:
    """FLOPs of a step on one image, forward and backward with the teachers, two for each multiply-add.

    Counted on shapes alone. Norms, activations and the update do not count.
    """
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        shapes = {name: torch.empty_like(t, device="meta", requires_grad=t.requires_grad) for name, t in held.items()}
        batch = random_batch(modalities, 1, size)
        # Not tied: a table that two encoders share is one module, which would be given back as shapes.
        mean_loss(functional_call(model, shapes, (batch,), tie_weights=False)).backward()
    return int(counter.get_total_flops())


def stage_lines(model: Mapping[str, Any]) -> list[str]:
    """Log lines of the stages, from `model_metadata`."""
    stages, lines = model["stages"], []
    for number, stage in enumerate(stages, start=1):
        which = f"stage {number} of {len(stages)}, {stage['epochs']:.4g} epochs: " if len(stages) > 1 else ""
        beside = f" beside {_millions(stage['guides'])} of teachers" if stage["guides"] else ""
        takes = f"; a step takes {stage['flops'] / 1e9:.3g} GFLOPs for each image" if stage["flops"] else ""
        lines.append(f"  {which}{_millions(stage['trained'])} parameters are trained{beside}{takes}")
    return lines


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def settings_metadata(settings: Settings, batch_size: int, workers: int | None, processes: int) -> dict[str, Any]:
    """How the run uses its machine: settings, processes, accumulation steps, threads."""
    return asdict(settings) | {
        "processes": processes,
        "accumulation": -(-batch_size // (settings.micro_batch * processes)),
        "threads": torch.get_num_threads(),
        "workers": workers or num_cores(),
    }


def read_settings(stored: Mapping[str, Any]) -> Settings:
    """The settings in a `run.json`, also of release 0.1, whose names differ. Raises ValueError where one is missing."""
    values = current_names(stored)
    try:
        return Settings(**{name: values[name] for name in Settings.__dataclass_fields__ if name in values})
    except TypeError as error:  # an entry is missing
        raise ValueError(f"the settings in its run.json are damaged ({error}); give another --out") from error
