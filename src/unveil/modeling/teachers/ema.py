"""The student as its own teacher: an average of its weights over time, or the weights it has now."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..decoder import SelfDecoder
from ..encoder import Encoder
from ..layers import Positions
from ..types import Batch, FeatureSpec, Mask, Observation, Tokens


@dataclass(frozen=True)
class Momentum:
    """How much of itself an average keeps at a step: from `start` to `end` over the share `until` of training."""

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


class ModelEma(nn.Module):
    """A copy of a module that follows it: after each update, m x copy + (1 - m) x module, in float32.

    It begins as the module is now, is never trained itself and always in eval. Position tables, which are fixed, are
    shared, not copied.
    """

    def __init__(self, of: nn.Module, momentum: Momentum):
        super().__init__()
        shared = {id(part): part for part in of.modules() if isinstance(part, Positions)}
        self.copy = copy.deepcopy(of, shared).float().requires_grad_(False).eval()
        self.of = (of,)  # in a tuple, so that it is no part: whose it is, saves it
        self.momentum = momentum
        self.progress = 0.0

    def train(self, mode: bool = True) -> ModelEma:
        return super().train(False)

    def before_step(self, step: int, progress: float) -> None:
        """Where training is: the momentum of the step that comes."""
        self.progress = progress

    @torch.no_grad()
    def follow(self, updated: Bool[Tensor, ""]) -> None:
        """Move towards the module, or not where the update was not made; nothing waits for the device."""
        mine: list[Tensor] = list(self.copy.parameters())
        theirs: list[Tensor] = list(self.of[0].parameters())
        step = (1 - self.momentum(self.progress)) * updated
        torch._foreach_lerp_(mine, theirs, [step] * len(mine))


def reset_emas(model: nn.Module) -> None:
    """Every average of a model becomes what it follows is now."""
    for part in model.modules():
        if isinstance(part, ModelEma):
            part.copy.load_state_dict(part.of[0].state_dict())


class EMATeacher(nn.Module):
    """The student's encoder, averaged over time (BYOL, arXiv 2006.07733; DINO, arXiv 2104.14294)."""

    def __init__(self, encoder: Encoder, momentum: Momentum, spec: FeatureSpec):
        super().__init__()
        self.average = ModelEma(encoder, momentum)
        self.spec = spec

    @property
    def encoder(self) -> Encoder:
        assert isinstance(self.average.copy, Encoder)
        return self.average.copy

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        return self.encoder.observe(self.encoder.embed(batch), self.spec)

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        self.average.follow(updated)


class OnlineTeacher(nn.Module):
    """The student as it is now, without gradient; it reads the tokens that are embedded already."""

    def __init__(self, encoder: Encoder, spec: FeatureSpec):
        super().__init__()
        self.student = (encoder,)  # in a tuple: it is the model's part, not this one's
        self.spec = spec

    @property
    def dim(self) -> int:
        return self.student[0].dim

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        return self.student[0].observe(replace(tokens, values=tokens.values.detach()), self.spec)


class LossPredictor(nn.Module):
    """Encoder, decoder and head that guess how hard each token is to predict (HPM, arXiv 2304.05919, section 3.2)."""

    def __init__(self, encoder: Encoder, decoder: SelfDecoder, head: nn.Linear):
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head

    def forward(self, batch: Batch) -> Observation:
        """The guess for every token of the whole, unmasked input."""
        tokens = self.encoder.embed(batch)
        queries = self.decoder.make_queries(Mask(tokens.ids, tokens.ids[:, :0]), tokens.layout)
        answers = self.decoder(self.encoder(tokens), queries)
        return Observation(tokens.layout, error=self.head(answers).float()[..., 0])


class EMALossPredictor(nn.Module):
    """A loss predictor, averaged over time: HPM's teacher."""

    def __init__(self, encoder: Encoder, decoder: SelfDecoder, head: nn.Linear, momentum: Momentum):
        super().__init__()
        self.average = ModelEma(LossPredictor(encoder, decoder, head), momentum)
        assert isinstance(self.average.copy, LossPredictor)
        self.average.copy.decoder.outputs = "all"  # it sees every token, and each answers from its own slot

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        return self.average.copy(batch)

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        self.average.follow(updated)
