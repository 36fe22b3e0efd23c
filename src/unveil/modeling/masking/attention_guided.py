"""Attention-guided masking: teachers' attention, normalised, fused into one map, sampled as an order of tokens.

Shapes: B batch, H heads, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Batch, Observations, Tokens

TokenMap = Float[Tensor, "B N"]
AttentionMap = Callable[[Observations], TokenMap]  # at least 0, high where the teachers' attention or loss is high
MapFusion = Callable[[TokenMap, TokenMap, float], TokenMap]  # teacher's, student's, and the student's weight in [0, 1]
Sampler = Callable[[TokenMap, Batch], TokenMap]  # an order of tokens: the highest is hidden first
MapNorm = Literal["sum", "minmax", "rank", "none"]
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class TeacherAttention:
    """The attention of one teacher, as a map that can be fused with another's.

    The mean over `heads` (by default all), cut at its quantile `clip` (late layers of large ViTs have a few tokens
    that take most of it), then normalised: `sum` to one, `minmax` to [0, 1], `rank` to shares of N, or `none`.
    """

    teacher: str
    heads: tuple[int, ...] | None = None
    normalise: MapNorm = "sum"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip <= 1:
            raise ValueError(f"a quantile at which attention is cut is above 0 and at most 1; got {self.clip}")
        if self.heads is not None and (not self.heads or len(set(self.heads)) < len(self.heads)):
            raise ValueError(f"heads are numbered from 0, one at least and each once; got {self.heads}")

    def __call__(self, observations: Observations) -> TokenMap:
        by_head = observations[self.teacher].attention
        assert by_head is not None, f"the FeatureSpec of {self.teacher} has no attention"
        if self.heads is not None:
            if not all(0 <= head < by_head.shape[1] for head in self.heads):
                heads = ", ".join(map(str, self.heads))
                raise ValueError(f"the {self.teacher} has {by_head.shape[1]} heads, numbered from 0; got {heads}")
            by_head = torch.stack([by_head[:, head] for head in self.heads], dim=1)
        attention = by_head.float().mean(dim=1)
        if self.clip is not None:
            place = int(self.clip * (attention.shape[1] - 1))
            attention = attention.minimum(attention.sort(dim=1).values[:, place : place + 1])
        return normalised(attention, self.normalise)


@dataclass(frozen=True)
class LossMap:
    """The loss of each token that a teacher measured or predicted."""

    teacher: str

    def __call__(self, observations: Observations) -> TokenMap:
        error = observations[self.teacher].error
        assert error is not None, f"{self.teacher} observes no losses"
        return error


def normalised(attention: TokenMap, how: MapNorm) -> TokenMap:
    """A map on a scale that another map shares (CMT-MAE, arXiv 2412.17566, does not say which)."""
    if how == "sum":
        return attention / attention.sum(dim=1, keepdim=True).clamp_min(TINY)
    if how == "minmax":
        low, high = attention.aminmax(dim=1, keepdim=True)
        return (attention - low) / (high - low).clamp_min(TINY)
    if how == "rank":
        return ranks(attention)
    return attention


def ranks(attention: TokenMap) -> TokenMap:
    """The share of tokens that have no more than this one: 1 for the highest, 1/N for the lowest; equals rank equal."""
    attention = attention.contiguous()
    return torch.searchsorted(attention.sort(dim=1).values, attention, right=True) / attention.shape[1]


def entropy(attention: TokenMap) -> Float[Tensor, "B 1"]:
    """The entropy of a map over tokens, in nats: 0 where one token has it all, log N where all have the same."""
    share = attention / attention.sum(dim=1, keepdim=True).clamp_min(TINY)
    return -torch.xlogy(share, share).sum(dim=1, keepdim=True)


def linear(teacher: TokenMap, student: TokenMap, student_weight: float) -> TokenMap:
    """The weighted mean (CMT-MAE, arXiv 2412.17566: "linear aggregation")."""
    return teacher.lerp(student, student_weight)


def attention_weighted(teacher: TokenMap, student: TokenMap, student_weight: float) -> TokenMap:
    """The mean weighted, token by token, by the maps themselves."""
    w_teacher, w_student = teacher * (1 - student_weight), student * student_weight
    return (w_teacher * teacher + w_student * student) / (w_teacher + w_student).clamp_min(TINY)


def geometric(teacher: TokenMap, student: TokenMap, student_weight: float) -> TokenMap:
    """The weighted geometric mean: high where both maps are."""
    return teacher.clamp_min(TINY).log().lerp(student.clamp_min(TINY).log(), student_weight).exp()


def entropy_gated(teacher: TokenMap, student: TokenMap, student_weight: float) -> TokenMap:
    """The weighted mean of an image's two maps, the sharper of which counts more: weights are divided by perplexity."""
    w_student = student_weight * (-entropy(student)).exp()
    w_teacher = (1 - student_weight) * (-entropy(teacher)).exp()
    return teacher.lerp(student, w_student / (w_student + w_teacher))


FUSIONS: dict[str, MapFusion] = {
    "linear": linear,
    "attention-weighted": attention_weighted,
    "geometric": geometric,
    "maximum": lambda teacher, student, _: teacher.maximum(student),  # high where either map is; without weights
    "product": lambda teacher, student, _: teacher * student,  # high where both maps are; without weights
    "mean-rank": lambda teacher, student, weight: ranks(teacher).lerp(ranks(student), weight),  # whatever their scales
    "entropy-gated": entropy_gated,
}


@dataclass(frozen=True)
class CollaborativeAttention:
    """Teacher's and student's maps, fused into one (CMT-MAE, arXiv 2412.17566)."""

    teacher: AttentionMap
    student: AttentionMap
    student_weight: float = 0.3
    fuse: MapFusion = linear

    def __call__(self, observations: Observations) -> TokenMap:
        return self.fuse(self.teacher(observations), self.student(observations), self.student_weight)


@dataclass(frozen=True)
class Gumbel:
    """Tokens are drawn one after another without replacement, each with a chance in proportion to its attention.

    Sorting log attention plus Gumbel noise is that draw (Kool et al., 2019, arXiv 1903.06059), and stands zeros. A
    higher `temperature` draws more evenly, one near 0 as `Hard`.
    """

    temperature: float = 1.0
    purpose: str = "mask"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature of a draw is above 0; got {self.temperature}. To sort, draw hard")

    def __call__(self, attention: TokenMap, batch: Batch) -> TokenMap:
        waits = -batch.rng.uniform(self.purpose, attention.shape[1]).clamp_min(2.0**-25).log()
        return attention.float().clamp_min(TINY).log() / self.temperature - waits.log()


@dataclass(frozen=True)
class Hard:
    """The tokens with the most attention, without chance (AttMask-High, arXiv 2203.12719, section 3.2)."""

    def __call__(self, attention: TokenMap, batch: Batch) -> TokenMap:
        return attention


@dataclass(frozen=True)
class Noisy:
    """Attention with noise of each image's own mean and spread: beta N(mean, std) + (1 - beta) A."""

    beta: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is the share of noise in a map, from 0 to 1; got {self.beta}")

    def __call__(self, attention: TokenMap, batch: Batch) -> TokenMap:
        std, mean = torch.std_mean(attention, dim=1, keepdim=True)
        noise = mean + std * batch.rng.normal("mask", attention.shape[1])
        return noise.lerp(attention, 1 - self.beta)


@dataclass(frozen=True)
class Hint:
    """`Hard`, but of the share `top` of tokens with the most attention a random few, a share `shown` of all, stay
    visible (AttMask-Hint, arXiv 2203.12719, section 3.2): one at least, however few the tokens are, unless it is 0."""

    top: float = 0.1
    shown: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.shown <= self.top <= 1:
            raise ValueError(
                f"hints are a share of the tokens with the most attention, 0 <= shown <= top <= 1; got shown="
                f"{self.shown} of top={self.top}"
            )

    def __call__(self, attention: TokenMap, batch: Batch) -> TokenMap:
        num_tokens = attention.shape[1]
        place = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the highest
        lot = torch.where(place < self.top * num_tokens, batch.rng.uniform("hint", num_tokens), -1.0)
        num_shown = max(int(self.shown * num_tokens + 1e-6), int(self.shown > 0))
        is_shown = lot.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < num_shown
        return -torch.where(is_shown, num_tokens, place).to(attention.dtype)


@dataclass(frozen=True)
class Reversed:
    """Another draw the other way round: what it would hide first stays visible.

    Of `Gumbel` it is MILAN's semantic-aware sampling (arXiv 2208.06049, section 3.3), of `Hard` AttMask-Low.
    """

    sampler: Sampler

    def __call__(self, attention: TokenMap, batch: Batch) -> TokenMap:
        return -self.sampler(attention, batch)


SamplerName = Literal["gumbel", "hard", "noisy", "hint", "low", "keep"]


def make_sampler(name: SamplerName, temperature: float = 1.0, noise: float = 0.25) -> Sampler:
    """A sampler by name. `temperature` is that of gumbel and keep, `noise` the share of noise of noisy."""
    samplers: dict[SamplerName, Sampler] = {
        "gumbel": Gumbel(temperature),
        "hard": Hard(),
        "noisy": Noisy(noise),
        "hint": Hint(),
        "low": Reversed(Hard()),
        "keep": Reversed(Gumbel(temperature)),
    }
    return samplers[name]


SAMPLERS: dict[str, Sampler] = {name: make_sampler(name) for name in get_args(SamplerName)}


@dataclass(frozen=True)
class AttentionGuided:
    """Tokens are hidden in an order sampled from a map: by default, those with the highest values tend to be first."""

    attention_map: AttentionMap
    sampler: Sampler = field(default_factory=Gumbel)

    @torch.no_grad()  # a mask hands no gradient to what it was drawn from
    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> TokenMap:
        attention = self.attention_map(observations)
        if attention.shape != tokens.ids.shape:
            raise ValueError(
                f"the attention map has {attention.shape[1]} tokens and the student {tokens.ids.shape[1]};"
                " attention-guided masking needs teachers that read all modalities"
            )
        return self.sampler(attention, batch)


@dataclass(frozen=True)
class HardestFirst:
    """The tokens with the largest predicted loss are hidden first, the rest at random (HPM, arXiv 2304.05919).

    Of the share `hidden` of all tokens, the fraction chosen by loss grows with training from `start` to `end`.
    """

    teacher: str
    hidden: float
    start: float = 0.0
    end: float = 0.5

    @torch.no_grad()
    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> TokenMap:
        error = observations[self.teacher].error
        assert error is not None, f"{self.teacher} observes no losses"
        num_tokens = error.shape[1]
        fraction = self.start + (self.end - self.start) * batch.progress
        num_chosen = (fraction * math.ceil(self.hidden * num_tokens - 1e-6)).floor()
        place = error.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the hardest
        return torch.where(place < num_chosen, 2.0, batch.rng.uniform("mask", num_tokens))
