"""The overlap of two masks of the same samples. Shapes: B samples, N tokens."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add

from jaxtyping import Bool
from torch import Tensor

from ...modeling.masked_model import MaskedModel
from ...modeling.masking import (
    AttentionGuided,
    ByModality,
    DirichletBudget,
    Hard,
    IfObserved,
    Masker,
    TeacherAttention,
    Uniform,
)
from ...modeling.types import Batch, Observation, Tokens
from .attention import hidden_tokens

TEACHER = "guide"  # the name of the observation that masks follow


@dataclass(frozen=True)
class MaskOverlap:
    """Numbers of tokens: all, those that the first mask hides, those that the second hides, and those that both do."""

    tokens: float
    first: float
    second: float
    both: float

    def __add__(self, other: MaskOverlap) -> MaskOverlap:
        return MaskOverlap(*map(add, astuple(self), astuple(other)))

    def __mul__(self, share: float) -> MaskOverlap:
        return MaskOverlap(*(share * count for count in astuple(self)))

    @property
    def hidden_in_common(self) -> float:
        """The share of the first mask's hidden tokens that the second hides too."""
        return self.both / max(self.first, 1e-12)

    @property
    def visible_in_common(self) -> float:
        """The share of the first mask's visible tokens that are visible in the second too."""
        return (self.tokens - self.first - self.second + self.both) / max(self.tokens - self.first, 1e-12)

    @property
    def jaccard(self) -> float:
        """Jaccard index of the hidden tokens: both over either."""
        return self.both / max(self.first + self.second - self.both, 1e-12)


def guided_masker(own: Masker) -> Masker:
    """A masker with the visible share of `own` that masks as attention-guided MultiMAE: a Dirichlet budget, and in each
    modality the most attended tokens are hidden. Without an observation, masks are random under the same budget.
    """
    most_attended = ByModality(AttentionGuided(TeacherAttention(TEACHER, normalise="none"), Hard()))
    score = DirichletBudget(IfObserved(TEACHER, most_attended, ByModality(Uniform())))
    return Masker(score, own.visible, 1 - own.visible, unit=own.unit)


def guided_mask(model: MaskedModel, batch: Batch, tokens: Tokens, observation: Observation) -> Bool[Tensor, "B N"]:
    """The tokens that `guided_masker` hides, given a teacher's observation."""
    mask = guided_masker(model.masker)(tokens, {TEACHER: observation}, batch)
    return hidden_tokens(mask.visible, tokens.layout.num_tokens)


def mask_overlaps(first: Bool[Tensor, "B N"], second: Bool[Tensor, "B N"], tokens: Tokens) -> dict[str, MaskOverlap]:
    """The overlap of two masks in each modality; tokens of a missing modality are left out."""
    present = first.new_ones(first.shape) if tokens.missing is None else ~tokens.missing
    sets = (present, first & present, second & present, first & second & present)
    return {name: MaskOverlap(*(float(s[:, span].sum()) for s in sets)) for name, span in tokens.layout.spans.items()}
