"""Guidance that predicts a whole pass's attention from an early block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from multimodal import batch, build
from unveil.modeling.encoder import Encoder
from unveil.modeling.teachers import DistilledAttention
from unveil.modeling.types import Batch, Observation, Tokens
from unveil.recipes import multimae_attention

YES = torch.tensor(True)


class Foretold(nn.Module):
    """Attention whose logarithm is linear in features of the first block and their squares, in each modality anew."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.linear, self.quadratic = 0.1 * torch.randn(3, encoder.dim), 0.3 * torch.randn(3, encoder.dim)
        self.calls = 0

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        self.calls += 1
        x, keys = student.first_input(tokens)
        x = student.blocks[0](x, keys)[:, len(student.prefix) :]
        x = (x - x.mean(dim=-1, keepdim=True)) / x.std(dim=-1, keepdim=True, correction=0)
        parts = [
            (x[:, span] @ self.linear[i] + x[:, span].square() @ self.quadratic[i] - i).exp()
            for i, span in enumerate(tokens.layout.spans.values())
        ]
        return Observation(tokens.layout, torch.cat(parts, dim=1)[:, None].expand(-1, 2, -1))


def distilled(every: int = 3, **options) -> tuple[DistilledAttention, Foretold, Encoder]:
    torch.manual_seed(0)
    encoder = build().encoder
    teacher = Foretold(encoder)
    return DistilledAttention(teacher, encoder, 1, every, **options).train(), teacher, encoder


def observe(module: DistilledAttention, encoder: Encoder, on: Batch, step: int, updated: Tensor = YES) -> Tensor:
    module.before_step(step, step / 100)
    attention = module.observe(on, encoder.embed(on), encoder).attention
    module.after_step({}, updated)
    assert attention is not None
    return attention.mean(dim=1)


def test_between_whole_passes_the_attention_is_predicted_in_every_modality():
    module, teacher, encoder = distilled()
    for step in range(3):
        observe(module, encoder, batch(16), step)
    assert teacher.calls == 3
    observe(module, encoder, batch(16), 3)
    other = batch(8)
    predicted = observe(module, encoder, other, 4)
    assert teacher.calls == 4
    truth = teacher.observe(other, encoder.embed(other), encoder).attention.mean(dim=1)
    for span in encoder.embed(other).layout.spans.values():
        predicted_log, true_log = predicted[:, span].log(), truth[:, span].log()
        levels = predicted_log.mean(dim=1)  # of an image: masks follow the order within it, so all have the same
        torch.testing.assert_close(levels, levels.mean().expand(8))
        assert abs(levels[0] - true_log.mean()) < 0.3
        centred = [y - y.mean(dim=1, keepdim=True) for y in (predicted_log, true_log)]
        assert torch.corrcoef(torch.stack([y.flatten() for y in centred]))[0, 1] > 0.95
    module.eval()
    assert torch.equal(module.observe(other, encoder.embed(other), encoder).attention.mean(dim=1), truth)


def test_a_skipped_update_leaves_the_prediction_as_it_was():
    module, _, encoder = distilled()
    observe(module, encoder, batch(8), 0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    observe(module, encoder, batch(16)[8:], 3, updated=torch.tensor(False))
    assert before.keys() == {"gram", "cross", "level", "weight"}
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    module.sums.fill_(float("nan"))
    module.totals.fill_(1.0)
    module.after_step({}, YES)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not module.sums.any()


def test_micro_batches_count_as_their_batch():
    whole, _, encoder = distilled()
    parts, _, _ = distilled()
    on = batch(8)
    observe(whole, encoder, on, 0)
    parts.before_step(0, 0.0)
    for half in (on[:3], on[3:]):
        parts.observe(half, encoder.embed(half), encoder)
    parts.after_step({}, YES)
    torch.testing.assert_close(whole.gram, parts.gram)
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-3, atol=1e-4)


def test_missing_tokens_have_no_attention_and_teach_nothing():
    module, _, encoder = distilled()
    on = batch(8)
    present = torch.tensor([True] * 4 + [False] * 4)
    lacking = replace(on, present={"depth": present})
    observe(module, encoder, lacking, 0)
    alone, _, _ = distilled()
    observe(alone, encoder, on[:4], 0)
    place = list(encoder.embed(on).layout.spans).index("depth")
    for moments in ("gram", "cross", "level"):  # of depth, those of the samples that have it
        torch.testing.assert_close(getattr(module, moments)[place], getattr(alone, moments)[place])
    tokens = encoder.embed(lacking)
    span = tokens.layout.spans["depth"]
    attention = module.predict(tokens, encoder).attention[:, 0, span]
    assert not attention[4:].any()
    assert (attention[:4] > 0).all()


def test_the_first_steps_in_which_it_is_asked_observe_and_then_every_nth():
    module, _, _ = distilled(every=2, stride=4, after=0.5)
    asked = [step for step in range(100) if step >= 50 and step % 4 == 0]
    learning = []
    for step in asked:
        module.before_step(step, step / 100)
        learning.append(module.observes)
    assert learning[:6] == [True, True, True, False, True, False]


def test_what_cannot_be_predicted_is_refused():
    encoder = build().encoder
    with pytest.raises(ValueError, match="predicted after 1 to"):
        DistilledAttention(Foretold(encoder), encoder, block=9)
    for options in ({"guide": "error"}, {"guide_heads": "random"}):
        with pytest.raises(ValueError, match="guidance=fast predicts the mean attention"):
            multimae_attention.recipe(guidance="fast", **options)
