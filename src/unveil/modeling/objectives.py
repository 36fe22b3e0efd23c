"""Objectives that no target states: which tokens are harder to predict than others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import initialise
from .masked_model import ForwardOutput, Objective
from .masking import AttentionMap, entropy
from .types import Batch, Latents, Queries, take

TINY = torch.finfo(torch.float32).tiny


class Ranking(nn.Module):
    """How well a guess puts the asked tokens of an image in the order of their errors.

    The chance that a token is the harder of two is the sigmoid of the difference of their guesses; the loss is the
    mean over an image's pairs of the negative log of the chance of what came true (HPM, arXiv 2304.05919, section 3.2).
    The errors are other objectives', weighted as they are, and take no gradient from here.
    """

    def __init__(self, name: str, of: Sequence[Objective], guess: nn.Module, weight: float = 1.0):
        super().__init__()
        self.name, self.weight = name, weight
        self.of = tuple(of)  # in a tuple: they are the model's parts, not this one's
        self.guess = guess

    def forward(self, seen: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        with torch.no_grad():
            found = [objective.errors(seen, batch) for objective in self.of]
            error = torch.stack([o.weight * e for o, (e, _) in zip(self.of, found, strict=True)]).sum(dim=0)
            known = torch.stack([k for _, k in found]).prod(dim=0)
            is_harder = (error[:, :, None] > error[:, None, :]) * known[:, :, None] * known[:, None, :]
        guess = self.guess(seen, seen.queries[self.of[0].decoder]).float()
        surprise = F.softplus(guess[:, None, :] - guess[:, :, None])  # -log sigmoid(its guess - the other's)
        pairs = is_harder.sum(dim=(1, 2))
        mean = (surprise * is_harder).sum(dim=(1, 2)) / pairs.clamp_min(1)
        return self.weight * mean.sum(), (pairs > 0).float().sum()


class ClassTokenDecoder(Protocol):
    """A decoder that answers for the class token, too."""

    def class_token(self, latents: Latents) -> Float[Tensor, "B 1 D"]: ...


class ClassToken(nn.Module):
    """How far the class token's answer is from a teacher's class token, by the head and the loss of an objective.

    MILAN compares it as it compares a patch (arXiv 2208.06049, section 3.4).
    """

    def __init__(self, name: str, teacher: str, decoder: ClassTokenDecoder, like: Objective, weight: float):
        super().__init__()
        self.name, self.teacher, self.weight = name, teacher, weight
        self.shared = (decoder, like)  # in a tuple: they are the model's parts, not this one's

    def forward(self, seen: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        decoder, like = self.shared
        truth = seen.observations[self.teacher].class_token
        assert truth is not None, f"{self.teacher} was not asked for its class token"
        guess = like.head(decoder.class_token(seen.latents)).float()
        total, count = like.loss(guess, truth[:, None], truth.new_ones(1, 1, 1))
        return self.weight * (total / count).sum(), count.new_ones(len(truth)).sum()


class UncertaintyWeighted(Objective):
    """An objective whose weight is learned: exp(-s) times its loss plus s, s the logarithm of a variance (Kendall et
    al., arXiv 1705.07115; an option of MultiMAE's released code)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, seen: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Tensor]:
        total, count = super().forward(seen, batch)
        return (-self.log_variance).exp() * total + self.log_variance * count, count


class DecoderLossPrediction(nn.Module):
    """The guess of a head on a decoder of its own (HPM's loss predictor)."""

    def __init__(self, decoder: str, head: nn.Linear):
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(self, seen: ForwardOutput, queries: Queries) -> Float[Tensor, "B Q"]:
        return self.head(seen.decoded[self.decoder])[..., 0]


class FeatureLossPrediction(nn.Module):
    """The guess of a linear head on what a teacher saw at the asked tokens; 0 in the steps in which it did not look."""

    def __init__(self, teacher: str, head: nn.Linear):
        super().__init__()
        self.teacher, self.head = teacher, head

    def forward(self, seen: ForwardOutput, queries: Queries) -> Float[Tensor, "B Q"]:
        features = seen.observations[self.teacher].features
        if features is None:
            return torch.zeros_like(queries.weight)
        return self.head(take(features, queries.ids))[..., 0]


class Gate(nn.Module):
    """A fusion that is learned: how much of each token's attention is the student's.

    A small network over both attentions, as multiples of an even share, and both entropies, as shares of the largest.
    It begins around the linear fusion of `student_weight`.
    """

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.apply(initialise)

    def forward(
        self, teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
    ) -> Float[Tensor, "B N"]:
        num_tokens = teacher.shape[1]
        told = []
        for attention in (teacher, student):
            even = attention.mean(dim=1, keepdim=True).clamp_min(TINY)
            told.append((attention / even).clamp_min(1e-3).log())
            told.append((entropy(attention) / math.log(max(2, num_tokens))).expand_as(attention))
        prior = math.log(student_weight / (1 - student_weight))
        share = (self.net(torch.stack(told, dim=-1))[..., 0].float() + prior).sigmoid()
        return teacher.lerp(student, share)


class GateScore(nn.Module):
    """The guess of a gate: the more the fused map looks at a token, the harder that token should be to predict."""

    def __init__(self, gate: Gate, attention_map: AttentionMap):
        super().__init__()
        self.gate, self.attention_map = gate, attention_map

    def forward(self, seen: ForwardOutput, queries: Queries) -> Float[Tensor, "B Q"]:
        return take(self.attention_map(seen.observations).clamp_min(TINY).log(), queries.cells)
