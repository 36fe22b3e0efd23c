"""Scores that are combined from other scores: by modality, with a fallback, with random heads.

Shapes: B batch, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Batch, Layout, Observations, Tokens
from .masker import TokenScore, Uniform


@dataclass(frozen=True)
class ByModality:
    """Each modality's tokens are ordered by its own score, `elsewhere` if it has none, with its own random numbers.

    The score gets the tokens of that modality alone, and the observations at them.
    """

    elsewhere: TokenScore
    scores: Mapping[str, TokenScore] = field(default_factory=dict)

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        layout, scores = tokens.layout, []
        for name, span in layout.spans.items():
            missing = None if tokens.missing is None else tokens.missing[:, span]
            alone = Layout({name: slice(0, layout.num_cells)}, layout.grid)
            own = Tokens(tokens.values[:, span], tokens.ids[:, span] - span.start, alone, missing)
            observed = {teacher: o.of(name) for teacher, o in observations.items() if name in o.layout.spans}
            score = self.scores.get(name, self.elsewhere)
            scores.append(score(own, observed, replace(batch, key=batch.rng.fold(name).key)).float())
        return torch.cat(scores, dim=1)


@dataclass(frozen=True)
class IfObserved:
    """A score that needs a teacher's observation, and another for steps without one (`EveryNSteps`)."""

    teacher: str
    score: TokenScore
    otherwise: TokenScore = field(default_factory=Uniform)

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        observation = observations[self.teacher]
        is_observed = observation.attention is not None or observation.error is not None
        return (self.score if is_observed else self.otherwise)(tokens, observations, batch)


@dataclass(frozen=True)
class RandomHeads:
    """A score guided by the mean of random heads of a teacher, per sample: their number is uniform in 1..H."""

    teacher: str
    score: TokenScore

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        observation = observations[self.teacher]
        assert observation.attention is not None, f"the FeatureSpec of {self.teacher} has no attention"
        heads = observation.attention.shape[1]
        number = 1 + (batch.rng.uniform("number of heads", 1) * heads).floor()
        drawn = batch.rng.uniform("heads", heads).argsort(dim=1).argsort(dim=1) < number
        mean = (observation.attention * drawn[..., None]).sum(dim=1, keepdim=True) / number[..., None]
        return self.score(tokens, {**observations, self.teacher: replace(observation, attention=mean)}, batch)


@dataclass(frozen=True)
class LossMap:
    """The loss of each token that a teacher measured or predicted."""

    teacher: str

    def __call__(self, observations: Observations) -> Float[Tensor, "B N"]:
        error = observations[self.teacher].error
        assert error is not None, f"{self.teacher} observes no losses"
        return error
