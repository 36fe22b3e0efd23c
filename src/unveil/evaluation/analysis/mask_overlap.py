"""Two masks of the same samples beside each other: how many tokens both hide.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from ...modeling.masked_model import MaskedModel
from ...modeling.masking import Attention, ByModality, DirichletBudget, Guided, Hard, IfSeen, Masker, Uniform
from ...modeling.types import Batch, Observation, Tokens
from .attention_maps import hidden_tokens

WHO = "guide"


@dataclass(frozen=True)
class MaskOverlap:
    """Numbers of tokens: all, those that one mask hides, those that another does, and those that both do."""

    tokens: float
    first: float
    second: float
    both: float

    def __add__(self, other: MaskOverlap) -> MaskOverlap:
        return MaskOverlap(
            self.tokens + other.tokens, self.first + other.first, self.second + other.second, self.both + other.both
        )

    def __mul__(self, share: float) -> MaskOverlap:
        return MaskOverlap(share * self.tokens, share * self.first, share * self.second, share * self.both)

    @property
    def hidden_in_common(self) -> float:
        """The share of the tokens that the first hides that the second hides too."""
        return self.both / max(self.first, 1e-12)

    @property
    def visible_in_common(self) -> float:
        """The share of the tokens that the first shows that the second shows too."""
        return (self.tokens - self.first - self.second + self.both) / max(self.tokens - self.first, 1e-12)

    @property
    def jaccard(self) -> float:
        """The hidden tokens of both over those of either."""
        return self.both / max(self.first + self.second - self.both, 1e-12)


def guided_masker(own: Masker) -> Masker:
    """The paper's masks at a masker's own share: a Dirichlet budget, and in each modality the most attended is hidden.

    What is attended is what `WHO` observed; where it did not look, masks are random under the same budget.
    """
    most = ByModality(Guided(Attention(WHO, normalise="none"), Hard()))
    score = DirichletBudget(IfSeen(WHO, most, ByModality(Uniform())))
    return Masker(score, own.visible, 1 - own.visible, unit=own.unit)


def hidden_under(model: MaskedModel, batch: Batch, tokens: Tokens, seen: Observation) -> Bool[Tensor, "B N"]:
    """The tokens that the paper's masks hide, given a look."""
    mask = guided_masker(model.masker)(tokens, {WHO: seen}, batch)
    return hidden_tokens(mask.visible, tokens.layout.num_tokens)


def mask_overlaps(first: Bool[Tensor, "B N"], second: Bool[Tensor, "B N"], tokens: Tokens) -> dict[str, MaskOverlap]:
    """The overlap of two masks in each modality; tokens that a sample does not have are no part of it."""
    there = first.new_ones(first.shape) if tokens.missing is None else ~tokens.missing
    sets = (there, first & there, second & there, first & second & there)
    return {
        name: MaskOverlap(*(float(part[:, span].sum()) for part in sets)) for name, span in tokens.layout.spans.items()
    }
