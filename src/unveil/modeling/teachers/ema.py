"""The student as its own teacher: an exponential moving average (EMA) of its weights, or its current weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...runs.dtensors import local_part
from ..decoder import SelfDecoder
from ..encoder import Encoder
from ..layers import Positions
from ..types import Batch, FeatureSpec, Mask, Observation, Tokens


@dataclass(frozen=True)
class Momentum:
    """The momentum of an EMA at a step: from `start` to `end` over the share `until` of training, then constant.

    Raises ValueError for a momentum outside [0, 1], 0 being the student itself, or a share that is not above 0.
    """

    start: float = 0.996
    end: float = 1.0
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    until: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"a momentum is from 0, the student itself, to 1; got {self.start} to {self.end}")
        if not self.until > 0:
            raise ValueError(f"a momentum reaches its end after a share of training above 0; got {self.until}")

    def __call__(self, progress: float) -> float:
        share = 0.0 if self.shape == "constant" else min(1.0, progress / self.until)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


def move_towards(averages: list[Tensor], weights: list[Tensor], step: Float[Tensor, ""]) -> None:
    """Move all averages a share of the way to the weights, in place.

    On a GPU in three kernels over all tensors: an interpolation by a tensor has a kernel for each of them.
    """
    if step.is_cuda:
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, step)
        torch._foreach_add_(averages, differences)
    else:
        torch._foreach_lerp_(averages, weights, [step] * len(averages))


class ModelEma(nn.Module):
    """The exponential moving average of a module's weights: after each update, m x average + (1 - m) x weights.

    It starts as a float32 copy of the module, takes no gradient and is always in eval mode. Position tables, which are
    fixed, are shared with the module.
    """

    def __init__(self, source: nn.Module, momentum: Momentum):
        super().__init__()
        shared = {id(module): module for module in source.modules() if isinstance(module, Positions)}
        self.copy = copy.deepcopy(source, shared).float().requires_grad_(False).eval()
        self.source = (source,)  # in a tuple, so that it is saved only where it is trained
        self.momentum = momentum
        self.progress = 0.0

    def train(self, mode: bool = True) -> ModelEma:
        return super().train(False)

    def before_step(self, step: int, progress: float) -> None:
        self.progress = progress

    @torch.no_grad()
    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        step = (1 - self.momentum(self.progress)) * updated  # a tensor: the host does not wait for the device
        averages, weights = ([local_part(p) for p in m.parameters()] for m in (self.copy, self.source[0]))
        move_towards(averages, weights, step)

    def reset(self) -> None:
        """Start again from the module's current weights."""
        self.copy.load_state_dict(self.source[0].state_dict())


def reset_emas(model: nn.Module) -> None:
    """Start every average of a model again from the current weights."""
    for module in model.modules():
        if isinstance(module, ModelEma):
            module.reset()


class EMATeacher(nn.Module):
    """An average of the student's encoder over time (BYOL, arXiv 2006.07733; DINO, arXiv 2104.14294)."""

    def __init__(self, encoder: Encoder, momentum: Momentum, spec: FeatureSpec):
        super().__init__()
        self.average = ModelEma(encoder, momentum)
        self.dim, self.spec = encoder.dim, spec

    @property
    def encoder(self) -> Encoder:
        assert isinstance(self.average.copy, Encoder)
        return self.average.copy

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return self.encoder.observe(self.encoder.embed(batch), self.spec)


class OnlineTeacher(nn.Module):
    """The student with its current weights, without gradient: the tokens that it has embedded are read, not the batch.

    `encoder` gives the width of the features; the weights are those of the `student` that observes.
    """

    def __init__(self, encoder: Encoder, spec: FeatureSpec):
        super().__init__()
        self.dim, self.spec = encoder.dim, spec

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return student.observe(replace(tokens, values=tokens.values.detach()), self.spec)


class LossPredictor(nn.Module):
    """Encoder, decoder and head that predict the loss of each token (HPM, arXiv 2304.05919)."""

    def __init__(self, encoder: Encoder, decoder: SelfDecoder, head: nn.Linear):
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head

    def forward(self, batch: Batch) -> Observation:
        """The predicted loss of every token of the whole, unmasked input."""
        tokens = self.encoder.embed(batch)
        queries = self.decoder.make_queries(Mask(tokens.ids, tokens.ids[:, :0]), tokens.layout)
        outputs = self.decoder(self.encoder(tokens), queries)
        return Observation(tokens.layout, error=self.head(outputs).float()[..., 0])


class EMALossPredictor(nn.Module):
    """An average of a loss predictor over time: HPM's teacher."""

    def __init__(self, encoder: Encoder, decoder: SelfDecoder, head: nn.Linear, momentum: Momentum):
        super().__init__()
        self.average = ModelEma(LossPredictor(encoder, decoder, head), momentum)
        assert isinstance(self.average.copy, LossPredictor)
        self.average.copy.decoder.outputs = "all"  # every token is visible, and its output is at its own place

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return self.average.copy(batch)
