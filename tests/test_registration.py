"""Modules inside scores are saved, moved and stepped with the model, each once."""

from __future__ import annotations

import torch
from torch import nn

from unveil.modeling.adaptive_budget import AdaptiveBudget
from unveil.modeling.decoder import SelfDecoder
from unveil.modeling.encoder import Encoder
from unveil.modeling.masked_model import LossTerm, MaskedModel, Objective
from unveil.modeling.masking import (
    AttentionGuided,
    ByModality,
    CollaborativeAttention,
    IfObserved,
    Masker,
    TeacherAttention,
    TokenScore,
    Uniform,
)
from unveil.modeling.objectives import Gate, GateScore, Ranking
from unveil.modeling.targets import Pixels
from unveil.modeling.types import RGB


class Holds(nn.Module):
    """A score that holds another in a tuple, where torch does not look for modules."""

    def __init__(self, score: TokenScore):
        super().__init__()
        self.inner = (score,)

    def forward(self, tokens, observations, batch) -> torch.Tensor:
        return self.inner[0](tokens, observations, batch)


def model(score: TokenScore, *terms: LossTerm) -> MaskedModel:
    encoder = Encoder([RGB], (16,), 4, dim=16, depth=2, heads=2)
    decoders = {"pixels": SelfDecoder("rgb", encoder, 16, 1, 2)}
    return MaskedModel(encoder, Masker(score, 0.25, 0.75), decoders, terms or [pixels()])


def pixels() -> Objective:
    return Objective("pixels", "pixels", 16, Pixels(RGB, 4))


def test_an_adaptive_budget_deep_in_a_conditional_score_is_saved_moved_and_stepped() -> None:
    budget, other = (AdaptiveBudget(Uniform(), {"rgb": "pixels"}, momentum=0.5) for _ in range(2))
    score = IfObserved("student", ByModality(Uniform(), {"rgb": budget}), Holds(IfObserved("student", other, budget)))
    guided = model(score)
    saved = [name for name in guided.state_dict() if name.startswith("scores.")]
    assert saved == ["scores.0.average", "scores.0.start", "scores.2.average", "scores.2.start"]
    for value in (4.0, 2.0):
        guided.after_step({"pixels": torch.tensor(value)}, torch.tensor(True))
    assert budget.average.tolist() == other.average.tolist() == [3.0], "each is stepped once"
    guided.load_state_dict({name: torch.full_like(t, 7) for name, t in guided.state_dict().items()})
    assert budget.average.tolist() == other.average.tolist() == [7.0]
    guided.to("meta")
    assert budget.average.is_meta
    assert other.average.is_meta


def test_a_score_that_is_a_module_keeps_the_name_that_checkpoints_have() -> None:
    saved = model(AdaptiveBudget(Uniform(), {"rgb": "pixels"})).state_dict()
    assert [name for name in saved if "scores" in name] == ["scores.0.average", "scores.0.start"]


def test_a_gate_that_an_objective_trains_is_saved_with_the_objective_alone() -> None:
    gate, objective = Gate(), pixels()
    fused = CollaborativeAttention(TeacherAttention("teacher"), TeacherAttention("student"), 0.3, gate)
    saved = model(AttentionGuided(fused), objective, Ranking("gate", [objective], GateScore(gate, fused))).state_dict()
    assert not [name for name in saved if name.startswith("scores.")]
    assert "objectives.1.guess.gate.net.0.weight" in saved
