"""What `unveil pretrain` chooses for a contender on this machine: precision and compilation, by short measurements."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...runs.console import log
from ...training.config import PretrainConfig
from ...training.timing import build_once, choose_fastest, tune_step
from ...training.trainer import Settings
from .modes import How
from .work import MODALITIES, Contender, Work

PLANNED = 12 * 3600.0  # seconds of the run that the choice is for: long enough for compiling to pay


def choose_settings(contender: Contender, work: Work, device: torch.device) -> Settings:
    """The settings of a long run of this work; those of another project are what it does by itself: float32, eager."""
    plain = Settings(str(device), "float32", work.batch_size, compile=False, save_minutes=10, val_every=1)
    if contender.recipe is None:
        return plain
    torch.manual_seed(work.seed)
    recipe = contender.recipe(work)
    recipe = build_once(replace(recipe, optim=replace(recipe.optim, batch_size=work.batch_size)))
    config = PretrainConfig(recipe="mae", device=str(device), threads=torch.get_num_threads())
    settings, _ = tune_step(config, recipe, MODALITIES, device)
    if device.type == "cpu":
        settings, _ = choose_fastest(config, recipe, settings, MODALITIES, PLANNED)
    log(f"{contender.name}: pretrain chooses {mode_of(settings)} here, {settings.micro_batch} images at once")
    return settings


def mode_of(settings: Settings) -> str:
    """The mode that computes as these settings do."""
    return How("bf16" if settings.precision == "bf16" else "float32", settings.compile).mode
