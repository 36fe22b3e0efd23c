"""Attention-guided masking: teachers' attention, normalised, fused into one map, turned into an order of tokens.

Shapes: B batch, H heads, N tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Batch, Observations, Tokens
from .sampling import Gumbel, Sampler

MapNorm = Literal["sum", "minmax", "rank", "none"]
TINY = torch.finfo(torch.float32).tiny


class AttentionMap(Protocol):
    """A number for every token, at least 0, high where the teachers' attention or loss is high."""

    def __call__(self, observations: Observations) -> Float[Tensor, "B N"]: ...


class MapFusion(Protocol):
    """Two maps as one. A `student_weight` of 0 leaves the teacher's alone, 1 the student's, where a fusion has one."""

    def __call__(
        self, teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
    ) -> Float[Tensor, "B N"]: ...


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

    def __call__(self, observations: Observations) -> Float[Tensor, "B N"]:
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


def normalised(attention: Float[Tensor, "B N"], how: MapNorm) -> Float[Tensor, "B N"]:
    """A map on a scale that another map shares (CMT-MAE, arXiv 2412.17566, does not say which)."""
    if how == "sum":
        return attention / attention.sum(dim=1, keepdim=True).clamp_min(TINY)
    if how == "minmax":
        low, high = attention.aminmax(dim=1, keepdim=True)
        return (attention - low) / (high - low).clamp_min(TINY)
    if how == "rank":
        return ranks(attention)
    return attention


def ranks(attention: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """The share of tokens that have no more than this one: 1 for the highest, 1/N for the lowest; equals rank equal."""
    attention = attention.contiguous()
    return torch.searchsorted(attention.sort(dim=1).values, attention, right=True) / attention.shape[1]


def entropy(attention: Float[Tensor, "B N"]) -> Float[Tensor, "B 1"]:
    """The entropy of a map over tokens, in nats: 0 where one token has it all, log N where all have the same."""
    share = attention / attention.sum(dim=1, keepdim=True).clamp_min(TINY)
    return -torch.xlogy(share, share).sum(dim=1, keepdim=True)


def linear(teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float) -> Float[Tensor, "B N"]:
    """The weighted mean (CMT-MAE, arXiv 2412.17566: "linear aggregation")."""
    return teacher.lerp(student, student_weight)


def attention_weighted(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
) -> Float[Tensor, "B N"]:
    """The mean weighted, token by token, by the maps themselves."""
    w_teacher, w_student = teacher * (1 - student_weight), student * student_weight
    return (w_teacher * teacher + w_student * student) / (w_teacher + w_student).clamp_min(TINY)


def geometric(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
) -> Float[Tensor, "B N"]:
    """The weighted geometric mean: high where both maps are."""
    return teacher.clamp_min(TINY).log().lerp(student.clamp_min(TINY).log(), student_weight).exp()


def maximum(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
) -> Float[Tensor, "B N"]:
    """The larger of the two: high where either map is; without weights."""
    return teacher.maximum(student)


def product(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
) -> Float[Tensor, "B N"]:
    """The product: high where both maps are; without weights."""
    return teacher * student


def mean_rank(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
) -> Float[Tensor, "B N"]:
    """The weighted mean of the two ranks, whatever the maps' own scales."""
    return ranks(teacher).lerp(ranks(student), student_weight)


def entropy_gated(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], student_weight: float
) -> Float[Tensor, "B N"]:
    """The weighted mean of an image's two maps, the sharper of which counts more: weights are divided by perplexity."""
    w_student = student_weight * (-entropy(student)).exp()
    w_teacher = (1 - student_weight) * (-entropy(teacher)).exp()
    return teacher.lerp(student, w_student / (w_student + w_teacher))


FUSIONS: dict[str, MapFusion] = {
    "linear": linear,
    "attention-weighted": attention_weighted,
    "geometric": geometric,
    "maximum": maximum,
    "product": product,
    "mean-rank": mean_rank,
    "entropy-gated": entropy_gated,
}


@dataclass(frozen=True)
class CollaborativeAttention:
    """Teacher's and student's maps, fused into one (CMT-MAE, arXiv 2412.17566)."""

    teacher: AttentionMap
    student: AttentionMap
    student_weight: float = 0.3
    fuse: MapFusion = linear

    def __call__(self, observations: Observations) -> Float[Tensor, "B N"]:
        return self.fuse(self.teacher(observations), self.student(observations), self.student_weight)


@dataclass(frozen=True)
class AttentionGuided:
    """Tokens are hidden in an order sampled from a map: by default, those with the highest values tend to be first."""

    attention_map: AttentionMap
    sampler: Sampler = field(default_factory=Gumbel)

    @torch.no_grad()  # a mask hands no gradient to what it was drawn from
    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        attention = self.attention_map(observations)
        if attention.shape != tokens.ids.shape:
            raise ValueError(
                f"the attention map has {attention.shape[1]} tokens and the student {tokens.ids.shape[1]};"
                " attention-guided masking needs teachers that read all modalities"
            )
        return self.sampler(attention, batch)


@dataclass(frozen=True)
class HardestFirst:
    """The tokens with the largest predicted loss are hidden first, the rest at random (HPM, arXiv 2304.05919, 3.3).

    Of the share `hidden` of all tokens, the fraction chosen by loss grows with training from `start` to `end`.
    """

    teacher: str
    hidden: float
    start: float = 0.0
    end: float = 0.5

    @torch.no_grad()
    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        error = observations[self.teacher].error
        assert error is not None, f"{self.teacher} observes no losses"
        num_tokens = error.shape[1]
        fraction = self.start + (self.end - self.start) * batch.progress
        num_chosen = (fraction * math.ceil(self.hidden * num_tokens - 1e-6)).floor()
        place = error.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the hardest
        return torch.where(place < num_chosen, 2.0, batch.rng.uniform("mask", num_tokens))
