"""Scores for tokens of several modalities, made of scores for one.

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
    """Each modality's tokens are ordered by a score of their own, with chance of their own.

    The score sees that modality alone: its tokens, and what was observed at them.
    """

    elsewhere: TokenScore
    scores: Mapping[str, TokenScore] = field(default_factory=dict)

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        layout, parts = tokens.layout, []
        for name, span in layout.spans.items():
            missing = None if tokens.missing is None else tokens.missing[:, span]
            alone = Layout({name: slice(0, layout.num_cells)}, layout.grid)
            own = Tokens(tokens.values[:, span], tokens.ids[:, span] - span.start, alone, missing)
            seen = {teacher: o.of(name) for teacher, o in observations.items() if name in o.layout.spans}
            score = self.scores.get(name, self.elsewhere)
            parts.append(score(own, seen, replace(batch, key=batch.rng.fold(name).key)).float())
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class IfObserved:
    """A score that needs what a teacher saw, and another for the steps in which the teacher did not look."""

    teacher: str
    score: TokenScore
    otherwise: TokenScore = field(default_factory=Uniform)

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        seen = observations[self.teacher]
        has_looked = seen.attention is not None or seen.error is not None
        return (self.score if has_looked else self.otherwise)(tokens, observations, batch)


@dataclass(frozen=True)
class RandomHeads:
    """A score that a random few of a teacher's H heads guide: their number is drawn from 1..H, then which they are."""

    teacher: str
    score: TokenScore

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        seen = observations[self.teacher]
        assert seen.attention is not None, f"{self.teacher} was not asked for its attention"
        heads = seen.attention.shape[1]
        number = 1 + (batch.rng.uniform("number of heads", 1) * heads).floor()
        drawn = batch.rng.uniform("heads", heads).argsort(dim=1).argsort(dim=1) < number
        mean = (seen.attention * drawn[..., None]).sum(dim=1, keepdim=True) / number[..., None]
        return self.score(tokens, {**observations, self.teacher: replace(seen, attention=mean)}, batch)


@dataclass(frozen=True)
class LossMap:
    """How hard a teacher found each token to predict, as a map to draw from."""

    teacher: str

    def __call__(self, observations: Observations) -> Float[Tensor, "B N"]:
        error = observations[self.teacher].error
        assert error is not None, f"{self.teacher} was not asked for errors"
        return error
