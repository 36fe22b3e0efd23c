"""Scores of several modalities, made of other scores: each by its own, visible tokens shared out by a Dirichlet draw.

Shapes: B batch, H heads, M modalities, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..constants import constant
from ..rng import SampleRng
from ..types import Batch, Layout, Observations, Tokens
from .masker import TokenScore, Uniform

TaskSampling = Literal["all", "uniform"]

TRIES = 8  # candidates of a draw: of one in 20, at worst, none of eight is accepted once in 10^10 draws
LEFT_OUT = 1e-5  # the concentration of a modality that a draw of tasks leaves out (MultiMAE's released code)
LEAST = -30.0  # of the logarithm of a share: below it float32 could not tell ranks apart
_TINY = 2.0**-25


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
    """A score guided by the mean of random heads of a teacher, drawn for each image or once a step: their number is
    uniform in 1..H."""

    teacher: str
    score: TokenScore
    drawn: Literal["image", "step"] = "image"

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        observation = observations[self.teacher]
        assert observation.attention is not None, f"the FeatureSpec of {self.teacher} has no attention"
        heads = observation.attention.shape[1]
        rng = batch.rng if self.drawn == "image" else batch.step_rng
        number = 1 + (rng.uniform("number of heads", 1) * heads).floor()
        drawn = rng.uniform("heads", heads).argsort(dim=1).argsort(dim=1) < number
        mean = (observation.attention * drawn[..., None]).sum(dim=1, keepdim=True) / number[..., None]
        return self.score(tokens, {**observations, self.teacher: replace(observation, attention=mean)}, batch)


def log_dirichlet_draw(rng: SampleRng, alpha: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Logarithms of shares that sum to 1, one draw per sample from Dirichlet(alpha), for any alpha above 0.

    Shares are draws from Gamma(alpha, 1) over their sum. Marsaglia and Tsang (2000): of a fixed number of candidates
    for Gamma(alpha + 1) the first that is accepted, times a uniform draw to the power 1/alpha. In logarithms, so that
    the smallest concentrations do not underflow.
    """
    shape = (alpha.shape[1], TRIES)
    d = (alpha + 2 / 3)[..., None]
    x = rng.normal("gamma candidates", shape[0] * TRIES).unflatten(1, shape)
    u = rng.uniform("gamma acceptance", shape[0] * TRIES).unflatten(1, shape).clamp_min(_TINY)
    v = (1 + x / (9 * d).sqrt()).pow(3)
    log_v = v.clamp_min(_TINY).log()
    accepted = (v > 0) & (u.log() < x.square() / 2 + d - d * v + d * log_v)
    first = accepted.int().argmax(dim=-1, keepdim=True)
    power = rng.uniform("gamma power", shape[0]).clamp_min(_TINY).log() / alpha
    log_gamma = d[..., 0].log() + log_v.gather(-1, first)[..., 0] + power
    return log_gamma.log_softmax(dim=1).clamp_min(LEAST)


def score_by_budget(
    guide: Float[Tensor, "B N"], alpha: Float[Tensor, " M"], batch: Batch, layout: Layout, tasks: TaskSampling = "all"
) -> Float[Tensor, "B N"]:
    """A score that shares the visible tokens out to modalities by a Dirichlet draw; inside each, `guide` orders.

    Rank r inside a modality of share s scores (r + 1/2) / s, here in logarithms: the lowest V scores of a sample are
    the seats that Sainte-Lague gives its modalities. So the total is exact, and what a modality cannot take, because
    it is too small or missing, passes to the others.
    """
    alpha = alpha.expand(len(guide), -1)
    if tasks == "uniform":  # the bits of a number from 1 are a set of modalities that is not empty
        number = 1 + (batch.rng.uniform("tasks", 1) * (2 ** alpha.shape[1] - 1)).long()
        alpha = alpha * (number >> torch.arange(alpha.shape[1], device=number.device) & 1).float() + LEFT_OUT
    ranks = guide.unflatten(1, (len(layout.spans), layout.num_cells)).argsort(dim=2, stable=True).argsort(dim=2)
    shares = log_dirichlet_draw(batch.rng, alpha)
    return ((ranks + 0.5).log() - shares[..., None]).flatten(1)


@dataclass(frozen=True)
class DirichletBudget:
    """Each modality's share of the visible tokens is drawn per sample from a Dirichlet (MultiMAE, arXiv 2204.01678,
    section 3.3); inside a modality the tokens that `guide` scores highest are hidden.

    `alpha` is the concentration, one for all or one per modality: 1 draws all shares alike, a large one equal shares.
    `tasks` uniform first draws which modalities take part, every set alike.
    """

    guide: TokenScore = field(default_factory=Uniform)
    alpha: float | Mapping[str, float] = 1.0
    tasks: TaskSampling = "all"

    def __post_init__(self) -> None:
        values = self.alpha.values() if isinstance(self.alpha, Mapping) else [self.alpha]
        if not all(alpha > 0 for alpha in values):
            raise ValueError(f"the concentration of a Dirichlet is above 0; got {self.alpha}")

    @torch.no_grad()
    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        guide = self.guide(tokens, observations, batch)
        names = list(tokens.layout.spans)
        each = [self.alpha[name] for name in names] if isinstance(self.alpha, Mapping) else [self.alpha] * len(names)
        return score_by_budget(guide, constant(tuple(each), guide), batch, tokens.layout, self.tasks)
