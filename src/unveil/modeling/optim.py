"""Optimisers and their parameter groups, and the learning rate: linear warm-up, then a cosine, per step.

By default everything is as MAE does it, with AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from .layers import fused_projections
from .optimizers import Joined, Muon

Decayed = Literal["matrices", "all"]
OptimizerName = Literal["adamw", "muon", "sgd"]


@dataclass(frozen=True)
class Optim:
    """How a recipe is optimised. `lr` is per 256 images: the peak rate is lr x lr_factor x batch_size / 256. `min_lr`,
    at which the cosine ends, is the rate itself. All groups of the `optimizer` have this rate.

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
    optimizer: OptimizerName = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"optimizer is one of {', '.join(get_args(OptimizerName))}; got {self.optimizer!r}")
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


class Layers(Protocol):
    """An encoder whose parameters belong to layers: 0 what is before its blocks, 1 the first, depth + 1 after them."""

    @property
    def depth(self) -> int:
        """The number of its blocks: what follows them is layer depth + 1."""

    def layer_of(self, name: str) -> int:
        """The layer of a parameter of this name."""


def layer_groups(model: nn.Module, encoder: Layers, decay: float, weight_decay: float) -> list[dict]:
    """Parameter groups for fine-tuning: the rate of layer k is scaled by decay ** (depth + 1 - k) (Clark et al., 2020).

    `encoder` is the model's part of that name; what else the model has is after the last block. Vectors do not decay,
    nor do tokens and tables of positions (the public MAE code frees them here).
    """
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = name.removeprefix("encoder.")
            layer = encoder.layer_of(inner) if inner != name else encoder.depth + 1
            is_place = name.rpartition(".")[2] in ("prefix", "table")
            is_free = parameter.ndim == 1 or len(parameter) == 1 or is_place
            fresh = {"params": [], "weight_decay": 0.0 if is_free else weight_decay}
            group = groups.setdefault((layer, is_free), fresh | {"scale": decay ** (encoder.depth + 1 - layer)})
            group["params"].append(parameter)
    return list(groups.values())


def adamw(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trained parameters, in one fused kernel."""
    groups = parameter_groups(model.named_parameters(), optim.weight_decay, optim.weight_decay_on)
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, fused=True)


def sgd(model: nn.Module, optim: Optim) -> torch.optim.SGD:
    """SGD with a momentum of 0.9 over the trained parameters, in one fused kernel."""
    groups = parameter_groups(model.named_parameters(), optim.weight_decay, optim.weight_decay_on)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
    for group in groups:
        for parameter in group["params"]:  # a first step that is skipped would leave them as memory was
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def muon(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks, AdamW for all other trained parameters, at the same rate and decay.

    Raises ValueError for a model without matrices in blocks.
    """
    matrices = block_matrices(model)
    if not matrices:
        raise ValueError(
            "--optimizer muon is for the matrices of `blocks`, of which this model trains none; use --optimizer adamw"
        )
    groups = [
        {"params": [p for p, n in matrices.items() if n == stacked], "stacked": stacked}
        for stacked in sorted(set(matrices.values()))
    ]
    others = [(name, p) for name, p in model.named_parameters() if p not in matrices]
    return Joined(
        Muon(groups, weight_decay=optim.weight_decay),
        torch.optim.AdamW(
            parameter_groups(others, optim.weight_decay, optim.weight_decay_on), lr=0.0, betas=optim.betas, fused=True
        ),
    )


OPTIMIZERS: dict[OptimizerName, Callable[[nn.Module, Optim], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
    "sgd": sgd,
}


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters, by its name; every group's rate is set before a step.

    Each skips a step on the device where its `found_inf` is set. Raises ValueError for a model that it cannot train.
    """
    return OPTIMIZERS[optim.optimizer](model, optim)


def block_matrices(model: nn.Module) -> dict[Tensor, int]:
    """The trained weights of linear layers in a module list called `blocks`, and how many matrices each stacks."""
    stacked: dict[Tensor, int] = {layer.weight: matrices for layer, matrices in fused_projections(model)}
    return {
        layer.weight: stacked.get(layer.weight, 1)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "blocks" in name.split(".") and layer.weight.requires_grad
    }
