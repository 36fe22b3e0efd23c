"""Optimisation as MAE does it: AdamW, two parameter groups, warm-up and cosine per step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Decayed = Literal["matrices", "all"]


@dataclass(frozen=True)
class Optim:
    """How a recipe is optimised. `lr` is per 256 images: the peak rate is lr x lr_factor x batch_size / 256. `min_lr`,
    at which the cosine ends, is the rate itself.

    The schedule is as long as the run and the `trained_epochs` before it, of which the run rides the tail.
    """

    lr: float = 1.5e-4
    batch_size: int = 4096
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = None
    lr_factor: float = 1.0
    trained_epochs: float = 0.0
    weight_decay_on: Decayed = "matrices"
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if not self.batch_size >= 1:
            raise ValueError(f"batch_size is a number at least 1; got {self.batch_size}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is a number above 0, or none; got {self.clip}")
        for name in ("lr", "warmup_epochs", "weight_decay", "trained_epochs", "min_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number at least 0; got {getattr(self, name)}")

    @property
    def peak_lr(self) -> float:
        return self.lr * self.lr_factor * self.batch_size / 256

    def rate(self, step: float, steps: float, per_epoch: float) -> float:
        """The learning rate at a step of a run of so many, of which an epoch has `per_epoch`."""
        before = self.trained_epochs * per_epoch
        warmup = self.warmup_epochs * per_epoch
        return learning_rate(before + step, before + steps, warmup, self.peak_lr, self.min_lr)


def learning_rate(step: float, steps: float, warmup_steps: float, peak: float, least: float) -> float:
    """The rate at a step: linear warm-up from 0 to the peak, then a half cosine to the least (MAE, table 8)."""
    share = warmup_cosine(step, steps, warmup_steps)
    return peak * share if step < warmup_steps else least + (peak - least) * share


def warmup_cosine(step: float, steps: float, warmup_steps: float) -> float:
    """The share of the peak rate at a step: linear warm-up from 0, then a half cosine to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1e-9, steps - warmup_steps)))


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, on: Decayed = "matrices"
) -> list[dict]:
    """Two groups: matrices and tokens decay; vectors (biases, norms) do not, unless decay is `on` all parameters.

    Class and mask tokens decay as they do in the public recipes, whatever shape they are kept in here.
    """
    decayed, free = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in named:
        if parameter.requires_grad:
            is_decayed = on == "all" or parameter.ndim > 1 or name.endswith("mask_token")
            (decayed if is_decayed else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def adamw(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trained parameters, in one fused kernel."""
    groups = parameter_groups(model.named_parameters(), optim.weight_decay, optim.weight_decay_on)
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, fused=True)
