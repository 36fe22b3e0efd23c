"""MultiMAE's guides: what is attended most is hidden; looks that are saved, coarse, or at errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multimodal import GUIDED, SEMANTICS, batch, build, flags
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.masking import Masker, Uniform
from unveil.modeling.teachers import EveryNSteps, LowResolutionTeacher, MeasuredLossTeacher, OnlineTeacher
from unveil.modeling.types import DEPTH, RGB, FeatureSpec, Mask, Observation


def test_the_guided_mask_hides_what_is_attended_most():
    model, on = build(GUIDED), batch()
    output = model.encode_decode(on)
    attention = model.encoder.observe(model.encoder.embed(on), FeatureSpec("cls", features=0)).attention.mean(dim=1)
    visible = torch.zeros(4, 48, dtype=torch.bool).scatter(1, output.mask.visible, True)
    for span in output.latents.tokens.layout.spans.values():
        for sample in range(4):
            own, shown = attention[sample, span], visible[sample, span]
            if shown.any() and not shown.all():
                assert own[shown].max() <= own[~shown].min()


def test_a_saved_look_is_a_pass_that_is_not_made():
    class Counting(OnlineTeacher):
        looks = 0

        def observe(self, batch, tokens, student) -> Observation:
            self.looks += 1
            return super().observe(batch, tokens, student)

    model, on = build(), batch(1)
    teacher = Counting(model.encoder, FeatureSpec("cls", features=0))
    sometimes = EveryNSteps(teacher, every=4, after=0.25)
    for step in range(16):
        sometimes.before_step(step, step / 16)
        sometimes.observe(on, model.encoder.embed(on), model.encoder)
    assert teacher.looks == 3  # steps 4, 8 and 12
    sometimes.eval().before_step(1, 0.0)
    observation = sometimes.observe(on, model.encoder.embed(on), model.encoder)
    assert observation.attention is not None, "out of training it always looks"


def test_a_coarse_look_sees_the_same_at_a_quarter_of_the_tokens():
    model, on = build(), batch()
    spec = FeatureSpec("cls", features=0)
    flat = replace(on, maps={n: m.new_full((), 1).expand_as(m) for n, m in on.maps.items()})
    calls = []

    class Watching(OnlineTeacher):
        def observe(self, batch, tokens, student) -> Observation:
            calls.append((batch, tokens))
            return super().observe(batch, tokens, student)

    coarse = LowResolutionTeacher(Watching(model.encoder, spec), model.encoder)
    attention = coarse.observe(flat, model.encoder.embed(flat), model.encoder).attention
    small, tokens = calls[0]
    assert tokens.ids.shape == (4, 12)
    assert attention.shape == (4, 2, 48)
    assert (small.maps["rgb"] == 1).all()
    assert small.maps["semseg"].shape == (4, 1, 4, 4)
    valid = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    valid[..., ::2, ::2] = True  # one valid pixel of four: it alone is averaged
    holes = torch.where(valid, on.maps["depth"], 1e6)
    coarse.observe(replace(on, maps={**on.maps, "depth": holes}, valid={"depth": valid}), tokens, model.encoder)
    torch.testing.assert_close(calls[1][0].maps["depth"], on.maps["depth"][..., ::2, ::2])


def test_what_is_foreseen_to_be_hard_is_hidden_and_comes_true():
    """The head learns, from errors that come true alone, and the highest of what it says is hidden."""
    model, on = build(GUIDED, guide="foreseen"), batch(12, progress=0.5)
    orders = [o for o in model.objectives if o.name.endswith("_order")]
    assert [o.name for o in orders] == ["rgb_order", "depth_order", "semseg_order"]
    losses = model(on)
    mean_loss({o.name: losses[o.name] for o in orders}).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {f"objectives.{i}.guess.head.weight" for i in (4, 5, 6)}
    output = model.encode_decode(on)
    error = output.observations["student"].error
    assert error is not None
    shown = torch.zeros(12, 48, dtype=torch.bool).scatter(1, output.mask.visible, True)
    for span in output.latents.tokens.layout.spans.values():
        for own, visible in zip(error[:, span], shown[:, span], strict=True):
            if visible.any() and not visible.all():
                assert own[visible].max() <= own[~visible].min()
    held = model.encode_decode(on, replace(model.masker, score=Uniform()))
    optimizer = torch.optim.Adam([p for o in orders for p in o.guess.parameters()], 0.01)
    surprises = []
    for _ in range(30):
        optimizer.zero_grad()
        surprise = mean_loss({o.name: o(held, on) for o in orders})
        surprise.backward()
        optimizer.step()
        surprises.append(surprise.item())
    assert surprises[-1] < 0.98 * surprises[0]
    model.teachers["student"].every = 2
    model.before_step(1, 0.5)
    assert all(total.isfinite() for total, _ in model(on).values()), "where nobody looked, nothing is foreseen"


@pytest.mark.parametrize("guide", ["error", "foreseen"])
def test_a_map_that_nobody_predicts_has_no_error_and_is_hidden_by_chance(guide: str):
    model, on = build(GUIDED, (RGB, replace(DEPTH, role="input"), SEMANTICS), guide=guide), batch(64)
    output = model.encode_decode(on)
    span = output.latents.tokens.layout.spans["depth"]
    shown = torch.zeros(64, 48).scatter(1, output.mask.visible, 1.0)[:, span]
    assert (shown.mean(dim=0) > 0.05).all()
    assert mean_loss(model(on)).isfinite()


def test_errors_are_those_of_guesses_from_the_other_half():
    model, on = build(visible=0.5), batch(present={"depth": flags(1, 0, 1, 1)})
    teacher = MeasuredLossTeacher(model.decoders, model.objectives)
    tokens = model.encoder.embed(on)
    error = teacher.observe(on, tokens, model.encoder).error
    assert error is not None
    assert not error.requires_grad
    order = on.rng.uniform("halves", 48).argsort(dim=1)

    class Fixed(Masker):
        def __call__(self, tokens, observations, batch) -> Mask:
            return Mask(order[:, :24], order[:, 24:])

    output = model.encode_decode(on, Fixed(model.masker.score, 0.5, 0.5))
    depth = next(o for o in model.objectives if o.name == "depth")
    result, known = depth.token_losses(output, on)
    for sample in (0, 2, 3):
        ids = output.queries["depth"].ids[sample][known[sample] > 0]
        torch.testing.assert_close(error[sample, ids], result[sample][known[sample] > 0])
    assert (error[1, 16:32] == 0).all()
    assert (error[0] > 0).all()
