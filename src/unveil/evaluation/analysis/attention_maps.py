"""Attention maps of a model and its teachers, and the masks that each sampler draws from a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.masked_model import ForwardOutput, MaskedModel
from ...modeling.masking import (
    SAMPLERS,
    AttentionGuided,
    CollaborativeAttention,
    LossMap,
    Masker,
    Sampler,
    TeacherAttention,
    TokenScore,
)
from ...modeling.types import Batch, FeatureSpec, Observation, Observations


@dataclass(frozen=True)
class AttentionMaps:
    """Attention to every token, the mean over heads, of the student and of the frozen teacher, and the map that masks
    are sampled from (the guide). The teacher's may cover some of the modalities only.
    """

    student: Float[Tensor, "B N"]
    teacher: Observation | None = None
    guide: Float[Tensor, "B N"] | None = None

    @property
    def mask_source(self) -> Float[Tensor, "B N"]:
        """The map that masks are sampled from; in a run without guidance the student's."""
        return self.student if self.guide is None else self.guide

    def teacher_map(self, modality: str) -> Float[Tensor, "B N"] | None:
        """The teacher's attention to one modality; None where it does not read that."""
        if self.teacher is None or modality not in self.teacher.layout.spans:
            return None
        attention = self.teacher.of(modality).attention
        return None if attention is None else attention.float().mean(dim=1)


@torch.no_grad()
def collect_attention_maps(model: MaskedModel, batch: Batch, output: ForwardOutput) -> AttentionMaps:
    """The attention maps of a forward pass. A student that was not observed in it is observed now: the attention of its
    last block's class token."""
    student = output.observations.get("student")
    if student is None or student.attention is None:
        student = model.encoder.observe(model.encoder.embed(batch), FeatureSpec(features=0))
    assert student.attention is not None
    teacher = output.observations.get("teacher")
    if teacher is not None and teacher.attention is None:
        teacher = None
    return AttentionMaps(
        student.attention.float().mean(dim=1), teacher, _guide(model.masker.score, output.observations)
    )


def _guide(score: TokenScore, observations: Observations) -> Float[Tensor, "B N"] | None:
    """The map that a score samples from; None where it is not guided, or its map covers some of the tokens only."""
    guided = find_guided_score(score)
    if guided is None:
        return None
    attention = guided.attention_map
    maps = [attention.teacher, attention.student] if isinstance(attention, CollaborativeAttention) else [attention]
    teachers = [m.teacher for m in maps if isinstance(m, TeacherAttention | LossMap)]
    if not teachers or any(name not in observations for name in teachers):
        return None
    return attention(observations).float()


def find_guided_score(score: object) -> AttentionGuided | None:
    """The guided score inside nested ones: budgets, random heads, scores by modality."""
    while score is not None and not isinstance(score, AttentionGuided):
        inner = (getattr(score, name, None) for name in ("guide", "score", "elsewhere"))
        score = next((nested for nested in inner if nested is not None), None)
    return score


def masks_by_sampler(
    model: MaskedModel, batch: Batch, attention: Float[Tensor, "B N"]
) -> dict[str, Bool[Tensor, "B N"]]:
    """The tokens that each sampler hides, given the map to sample from and the model's own share of visible tokens."""
    tokens, own = model.encoder.embed(batch), model.masker

    def hidden_by(sampler: Sampler) -> Bool[Tensor, "B N"]:
        masker = Masker(AttentionGuided(lambda _: attention, sampler), own.visible, 1 - own.visible, unit=own.unit)
        return hidden_tokens(masker(tokens, {}, batch).visible, attention.shape[1])

    return {name: hidden_by(sampler) for name, sampler in SAMPLERS.items()}


def hidden_tokens(visible: Tensor, num_tokens: int) -> Bool[Tensor, "B N"]:
    """The tokens that are not visible."""
    everywhere = torch.ones(len(visible), num_tokens, dtype=torch.bool, device=visible.device)
    return everywhere.scatter(1, visible, False)
