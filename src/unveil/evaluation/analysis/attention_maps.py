"""Where a model and its teachers look, and the masks that each way of drawing makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.masked_model import ForwardOutput, MaskedModel
from ...modeling.masking import (
    Attention,
    Collaborative,
    Draw,
    Errors,
    Guided,
    Gumbel,
    Hard,
    Hint,
    Masker,
    Noisy,
    Reversed,
    Score,
)
from ...modeling.types import Batch, FeatureSpec, Observation, Observations, Tokens

DRAWS: dict[str, Draw] = {
    "gumbel": Gumbel(),
    "hard": Hard(),
    "noise": Noisy(),
    "hint": Hint(),
    "low": Reversed(Hard()),
    "keep": Reversed(Gumbel()),
}


@dataclass(frozen=True)
class AttentionMaps:
    """Attention to every token, the mean over heads: the frozen teacher's (of the tokens that it sees), the student's,
    and the map that masks are drawn from; None where there is none.

    `layout` of the teacher's may lack modalities; the others cover all tokens.
    """

    student: Float[Tensor, "B N"]
    teacher: Observation | None = None
    guide: Float[Tensor, "B N"] | None = None

    @property
    def mask_source(self) -> Float[Tensor, "B N"]:
        """What masks are drawn from, or would be if they were guided."""
        return self.student if self.guide is None else self.guide

    def teacher_map(self, modality: str) -> Float[Tensor, "B N"] | None:
        """The teacher's attention to one modality, where it sees that."""
        if self.teacher is None or modality not in self.teacher.layout.spans:
            return None
        seen = self.teacher.of(modality).attention
        return None if seen is None else seen.float().mean(dim=1)


@torch.no_grad()
def collect_attention_maps(model: MaskedModel, batch: Batch, seen: ForwardOutput) -> AttentionMaps:
    """Where everybody looks who took part in this forward; the student where nobody asked: its last block's class
    token."""
    student = seen.observations.get("student")
    if student is None or student.attention is None:
        student = model.encoder.observe(model.encoder.embed(batch), FeatureSpec(features=0))
    assert student.attention is not None
    teacher = seen.observations.get("teacher")
    if teacher is not None and teacher.attention is None:
        teacher = None
    return AttentionMaps(student.attention.float().mean(dim=1), teacher, _guide(model.masker.score, seen.observations))


def _guide(score: Score, observations: Observations) -> Float[Tensor, "B N"] | None:
    """The map that a score draws from; None where it is not guided, or its map is of some of the tokens only."""
    guided = find_guided_score(score)
    if guided is None:
        return None
    gaze = guided.gaze
    needed = [gaze.teacher, gaze.student] if isinstance(gaze, Collaborative) else [gaze]
    who = [part.teacher for part in needed if isinstance(part, Attention | Errors)]
    if not who or any(name not in observations for name in who):
        return None
    return gaze(observations).float()


def find_guided_score(score: object) -> Guided | None:
    """The guided score inside scores that are made of others: budgets, choices of heads, one for each modality."""
    while score is not None and not isinstance(score, Guided):
        inner = (getattr(score, name, None) for name in ("guide", "score", "elsewhere"))
        score = next((part for part in inner if part is not None), None)
    return score


@dataclass(frozen=True)
class _Fixed:
    """A map that is drawn from as it is."""

    attention: Float[Tensor, "B N"]
    draw: Draw

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        return self.draw(self.attention, batch)


def masks_by_sampler(
    model: MaskedModel, batch: Batch, attention: Float[Tensor, "B N"]
) -> dict[str, Bool[Tensor, "B N"]]:
    """What each way of drawing hides of the tokens, at the model's own share, given the map it draws from."""
    tokens = model.encoder.embed(batch)
    own, found = model.masker, {}
    for name, draw in DRAWS.items():
        masker = Masker(_Fixed(attention, draw), own.visible, 1 - own.visible, unit=own.unit)
        found[name] = hidden_tokens(masker(tokens, {}, batch).visible, attention.shape[1])
    return found


def hidden_tokens(visible: Tensor, num_tokens: int) -> Bool[Tensor, "B N"]:
    """The tokens that are not visible."""
    everywhere = torch.ones(len(visible), num_tokens, dtype=torch.bool, device=visible.device)
    return everywhere.scatter(1, visible, False)
