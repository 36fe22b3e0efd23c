"""Loss terms that are no `Objective`: rankings of token losses, class tokens, learned weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .decoder import PromptingDecoder
from .layers import initialise
from .masked_model import ForwardOutput, Objective
from .masking import AttentionMap, entropy
from .types import Batch, Queries, take

TINY = torch.finfo(torch.float32).tiny


class Ranking(nn.Module):
    """Trains a prediction of token losses by their order (HPM, arXiv 2304.05919).

    The probability that a token is the harder of two is the sigmoid of the difference of their predictions; the loss
    is the mean negative log-likelihood over the pairs of queries of an image. The token losses are the weighted sum of
    those of the objectives `of`, without gradient; `guess` predicts them.
    """

    def __init__(self, name: str, of: Sequence[Objective], guess: nn.Module, weight: float = 1.0):
        super().__init__()
        self.name, self.weight = name, weight
        self.of = tuple(of)  # in a tuple: they are registered by the masked model
        self.guess = guess  # the name of its parameters in checkpoints

    def forward(self, output: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        with torch.no_grad():
            each = [objective.token_losses(output, batch) for objective in self.of]
            error = torch.stack([o.weight * loss for o, (loss, _) in zip(self.of, each, strict=True)]).sum(dim=0)
            known = torch.stack([is_known for _, is_known in each]).prod(dim=0)
            is_harder = (error[:, :, None] > error[:, None, :]) * known[:, :, None] * known[:, None, :]
        predicted = self.guess(output, output.queries[self.of[0].decoder]).float()
        nll = F.softplus(predicted[:, None, :] - predicted[:, :, None])  # -log sigmoid(difference)
        pairs = is_harder.sum(dim=(1, 2))
        mean = (nll * is_harder).sum(dim=(1, 2)) / pairs.clamp_min(1)
        return self.weight * mean.sum(), (pairs > 0).float().sum()


class ClassToken(nn.Module):
    """Predicts a teacher's class token from the decoder's, with the head and the loss of the objective `like`.

    MILAN treats the class token as it treats a patch (arXiv 2208.06049).
    """

    def __init__(self, name: str, teacher: str, decoder: PromptingDecoder, like: Objective, weight: float):
        super().__init__()
        self.name, self.teacher, self.weight = name, teacher, weight
        self.shared = (decoder, like)  # in a tuple: they are registered by the masked model

    def forward(self, output: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        decoder, like = self.shared
        target = output.observations[self.teacher].class_token
        assert target is not None, f"the feature spec of {self.teacher} has no class token"
        prediction = like.head(decoder.class_token(output.latents)).float()
        total, count = like.loss(prediction, target[:, None], target.new_ones(1, 1, 1))
        return self.weight * (total / count).sum(), count.new_ones(len(target)).sum()


class UncertaintyWeighted(Objective):
    """An objective whose weight is learned: exp(-s) times its loss plus s, s the logarithm of a variance (Kendall et
    al., arXiv 1705.07115; an option of MultiMAE's released code)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, output: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Tensor]:
        total, count = super().forward(output, batch)
        return (-self.log_variance).exp() * total + self.log_variance * count, count


class DecoderLossPrediction(nn.Module):
    """Token losses predicted by a linear head on a decoder of its own (HPM's loss predictor)."""

    def __init__(self, decoder: str, head: nn.Linear):
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(self, output: ForwardOutput, queries: Queries) -> Float[Tensor, "B Q"]:
        return self.head(output.decoded[self.decoder])[..., 0]


class FeatureLossPrediction(nn.Module):
    """Token losses predicted by a linear head on a teacher's features; 0 in steps without an observation."""

    def __init__(self, teacher: str, head: nn.Linear):
        super().__init__()
        self.teacher, self.head = teacher, head

    def forward(self, output: ForwardOutput, queries: Queries) -> Float[Tensor, "B Q"]:
        features = output.observations[self.teacher].features
        if features is None:
            return torch.zeros_like(queries.weight)
        return self.head(take(features, queries.ids))[..., 0]


class Gate(nn.Module):
    """A learned fusion: the student's weight for each token, from a small MLP, in the linear fusion of two maps.

    The MLP reads both attentions, in multiples of the uniform value, and both entropies, as shares of log N. It starts
    near the linear fusion of `student_weight`.
    """

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.apply(initialise)

    def forward(
        self, teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
    ) -> Float[Tensor, "B N"]:
        num_tokens = teacher.shape[1]
        inputs = []
        for attention in (teacher, student):
            uniform = attention.mean(dim=1, keepdim=True).clamp_min(TINY)
            inputs.append((attention / uniform).clamp_min(1e-3).log())
            inputs.append((entropy(attention) / math.log(max(2, num_tokens))).expand_as(attention))
        prior = math.log(student_weight / (1 - student_weight))
        share = (self.net(torch.stack(inputs, dim=-1))[..., 0].float() + prior).sigmoid()
        return teacher.lerp(student, share)


class GateScore(nn.Module):
    """Token losses as a gate predicts them: the log of the fused attention. Ranking it trains the gate."""

    def __init__(self, gate: Gate, attention_map: AttentionMap):
        super().__init__()
        self.gate, self.attention_map = gate, attention_map

    def forward(self, output: ForwardOutput, queries: Queries) -> Float[Tensor, "B Q"]:
        return take(self.attention_map(output.observations).clamp_min(TINY).log(), queries.cells)
