"""The student as its own teacher, and decoders that answer for all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tiny import batch, build_of
from unveil.modeling.decoder import CrossDecoder, PromptingDecoder, SelfDecoder
from unveil.modeling.encoder import Encoder
from unveil.modeling.teachers import EMATeacher, Momentum, OnlineTeacher, reset_emas
from unveil.modeling.types import RGB, FeatureSpec, Mask
from unveil.recipes import attmask

READING = FeatureSpec()


def encoder(dim: int = 24) -> Encoder:
    return Encoder([RGB], (16, 24), 4, dim, 2, 2)


class TestTheStudentAsTeacher:
    @pytest.mark.parametrize(
        ("momentum", "progress", "expected"),
        [
            (Momentum(), 0.0, 0.996),
            (Momentum(), 0.5, 0.998),
            (Momentum(), 1.0, 1.0),
            (Momentum(0.999, 0.9999, "linear", until=0.125), 0.0625, 0.99945),
            (Momentum(0.999, 0.9999, "linear", until=0.125), 0.5, 0.9999),
            (Momentum(0.99, 1.0, "constant"), 0.7, 0.99),
        ],
    )
    def test_the_momentum_follows_its_schedule(self, momentum: Momentum, progress: float, expected: float):
        assert momentum(progress) == pytest.approx(expected, abs=1e-6)

    def test_it_is_the_average_of_what_the_student_was(self):
        student = encoder()
        teacher = EMATeacher(student, Momentum(0.9, 0.9, "constant"), READING)
        assert not teacher.train().average.training
        before = [p.clone() for p in student.parameters()]
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        teacher.average.after_step({}, torch.tensor(False))
        assert all(torch.equal(a, b) for a, b in zip(teacher.encoder.parameters(), before, strict=True))
        teacher.average.after_step({}, torch.tensor(True))
        for mine, old, its in zip(teacher.encoder.parameters(), before, student.parameters(), strict=True):
            torch.testing.assert_close(mine, 0.9 * old + 0.1 * its)
            assert mine.dtype == torch.float32
            assert not mine.requires_grad

    def test_its_momentum_is_that_of_the_step(self):
        model = build_of(attmask, momentum=0.0, momentum_end=1.0)
        average = model.teachers["student"].encoder.prefix
        before = average.clone()
        with torch.no_grad():
            model.encoder.prefix.add_(1.0)
        model.before_step(3, 0.5)
        model.after_step({}, torch.tensor(True))
        torch.testing.assert_close(average, before + 0.5)

    def test_position_tables_are_shared_and_its_weights_are_saved(self):
        student = encoder()
        teacher = EMATeacher(student, Momentum(), READING)
        assert teacher.encoder.positions is student.positions
        assert {n.removeprefix("average.copy.") for n in teacher.state_dict()} == set(student.state_dict())

    def test_it_begins_anew_where_weights_are_put_into_the_student(self):
        model = nn.ModuleDict({"student": encoder()})
        model["teacher"] = EMATeacher(model["student"], Momentum(), READING)
        model["student"].load_state_dict(encoder().state_dict())
        assert not torch.equal(model["teacher"].encoder.prefix, model["student"].prefix)
        reset_emas(model)
        for mine, its in zip(model["teacher"].encoder.parameters(), model["student"].parameters(), strict=True):
            assert torch.equal(mine, its)
            assert mine is not its

    def test_online_it_is_the_student_without_gradient_and_without_weights_of_its_own(self):
        student, on = encoder(), batch()
        tokens = student.embed(on)
        observation = OnlineTeacher(student, READING).observe(on, tokens, student)
        assert not list(OnlineTeacher(student, READING).parameters())
        assert not observation.features.requires_grad
        truth = student.observe(tokens, READING)
        assert torch.equal(observation.features, truth.features)
        assert torch.equal(observation.attention, truth.attention)

    @pytest.mark.parametrize("wrong", [{"start": 1.1}, {"end": -0.1}, {"until": 0.0}])
    def test_what_no_momentum_can_be(self, wrong: dict):
        with pytest.raises(ValueError, match="momentum"):
            Momentum(**wrong)


class TestAnswersForAll:
    @pytest.mark.parametrize("kind", [SelfDecoder, CrossDecoder, PromptingDecoder])
    def test_predicted_tokens_get_the_same_answers_and_visible_ones_come_first(self, kind: Any):
        student, on = encoder(), batch()
        more = (None,) if kind is CrossDecoder else ()
        decoder = kind("rgb", student, 16, 2, 2, *more)
        tokens = student.embed(on)
        order = torch.rand(3, 24).argsort(dim=1)
        mask = Mask(order[:, :8], order[:, 8:14])
        latents = student(tokens.take(mask.visible))
        queries = decoder.make_queries(mask, tokens.layout)
        decoder.outputs = "all"
        every = decoder.make_queries(mask, tokens.layout)
        assert torch.equal(every.ids[:, :8], mask.visible)
        assert torch.equal(every.ids[:, 8:], queries.ids)
        assert (every.weight == 1).all()
        answers = decoder(latents, every)
        decoder.outputs = "predicted"
        torch.testing.assert_close(answers[:, 8:], decoder(latents, queries))

    def test_a_visible_token_answers_from_its_own_slot(self):
        """Not from a mask token: where blocks change nothing, its answer is its embedded latent."""
        student, on = encoder(), batch()
        decoder = SelfDecoder("rgb", student, 16, 1, 2, outputs="all")
        with torch.no_grad():
            for block in decoder.blocks:
                block.attn.proj.weight.zero_(), block.mlp[2].weight.zero_()
        tokens = student.embed(on)
        mask = Mask(torch.tensor([[5, 2]] * 3), torch.tensor([[0, 1, 3]] * 3))
        latents = student(tokens.take(mask.visible))
        answers = decoder(latents, decoder.make_queries(mask, tokens.layout))
        own = decoder.norm(decoder.embed(latents.final[:, 1:]) + decoder.positions(tokens.layout.grid)[[5, 2]])
        torch.testing.assert_close(answers[:, :2], own)
