"""Where in a training step the first number arises that is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.masked_model import MaskedModel, mean_loss
from ..modeling.types import Batch
from .trainer import Trainer

NOTHING = "nowhere when the step was repeated"
_INPUT = "in the input"


@dataclass(frozen=True)
class Finding:
    """The place of the first number that is not finite, and the losses of the objectives in that repetition."""

    where: str
    losses: Mapping[str, float]

    @property
    def is_finite(self) -> bool:
        """Whether the repetition was finite throughout."""
        return self.where == NOTHING

    @property
    def is_of_input(self) -> bool:
        """Whether images were not finite to begin with."""
        return self.where.startswith(_INPUT)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in the output of a module: in tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(inner)


def is_broken(tensor: Tensor) -> bool:
    """Whether a tensor of floats holds a number that is not finite."""
    return tensor.is_floating_point() and not bool(tensor.detach().isfinite().all())


def stored_finding(trainer: Trainer) -> str | None:
    """A weight, average or moment that is not finite before the step, if there is one."""
    names = dict(trainer.model.named_parameters())
    for name, tensor in (*names.items(), *trainer.model.named_buffers()):
        if is_broken(tensor):
            return f"in the weights {name}, before the step"
    for name, parameter in names.items():
        for moment, tensor in trainer.optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, Tensor) and is_broken(tensor):
                return f"in the optimiser's {moment} of {name}, before the step"
    return None


def input_finding(batch: Batch, images: list[str]) -> str | None:
    """The map and the images of a batch that are not finite, if there are any. `images`: a name for each sample."""
    for modality, values in batch.maps.items():
        if values.is_floating_point():
            broken = (~values.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
            if broken:
                names = [images[i] for i in broken if i < len(images)]
                return f"{_INPUT} {modality} of {named(names) or f'{len(broken)} samples'}"
    return None


class Watch:
    """Notes the first output of a module, and the first gradient of one, that is not finite."""

    def __init__(self) -> None:
        self.output: str | None = None
        self.gradient: str | None = None

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Watch every module of a model."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if name:
                    handle = module.register_forward_hook(partial(self._seen, name))
                    stack.callback(handle.remove)
            yield

    def _seen(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            if not tensor.is_floating_point():
                continue
            if self.output is None and is_broken(tensor):
                self.output = name
            if tensor.requires_grad:
                tensor.register_hook(partial(self._came_back, name))

    def _came_back(self, name: str, gradient: Tensor) -> None:
        if self.gradient is None and is_broken(gradient):
            self.gradient = name

    @property
    def finding(self) -> str | None:
        """Where it arose: a module's output, or the gradient with respect to one."""
        if self.output is not None:
            return f"in the output of {self.output}"
        return None if self.gradient is None else f"in the gradient at the output of {self.gradient}"


def examine(trainer: Trainer, batch: Batch, images: list[str], precision: str | None = None) -> Finding:
    """Repeat a step without its update, uncompiled, micro-batch by micro-batch, and name the first bad number.

    `precision` replaces that of the trainer. Nothing of the trainer changes. The losses are means over micro-batches.
    """
    model, settings = trainer.model, trainer.settings
    is_bf16 = (precision or settings.precision) == "bf16"
    where = stored_finding(trainer) or input_finding(batch, images)
    losses: dict[str, float] = {}
    micro_batches = batch.split(settings.micro_batch)
    for micro_batch in micro_batches:
        watch = Watch()
        with watch.on(model):
            with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=is_bf16):
                given = model(micro_batch.on(settings.device))
            loss = mean_loss(given)
            gradients = torch.autograd.grad(loss, trainer.parameters, allow_unused=True)
        for name, (total, count) in given.items():
            share = len(micro_batch) / len(batch)
            losses[name] = losses.get(name, 0.0) + share * float(total.detach() / count.clamp_min(1))
        where = where or watch.finding
        if where is None and is_broken(loss):
            where = f"in the loss {next(n for n, (total, _) in given.items() if is_broken(total))}"
        if where is None and any(g is not None and is_broken(g) for g in gradients):
            broken = next(
                p for p, g in zip(trainer.parameters, gradients, strict=True) if g is not None and is_broken(g)
            )
            where = f"in the gradient of {_name_of(model, broken)}"
    return Finding(where or NOTHING, losses)


def _name_of(model: MaskedModel, parameter: Tensor) -> str:
    return next(name for name, own in model.named_parameters() if own is parameter)


def named(names: list[str], most: int = 5) -> str:
    """Names in a sentence, the first few of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
