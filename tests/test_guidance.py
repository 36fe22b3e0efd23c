"""Guidance: maps of attention, what fuses them, what draws from them, and that no guided mask leaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from test_masking import keyed, layout, tokens
from test_model import Given, noisy_where
from tiny import batch, build_of, maps
from unveil.modeling.masking import (
    FUSIONS,
    AttentionGuided,
    Gumbel,
    Hard,
    HardestFirst,
    Hint,
    Masker,
    Noisy,
    Reversed,
    TeacherAttention,
    entropy,
)
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import Observation
from unveil.recipes import attmask, cmtmae, hpm, milan

WEIGHTED = ("linear", "attention-weighted", "geometric", "mean-rank", "entropy-gated")


def observed(attention: Tensor, rows: int = 3, columns: int = 4, **more: Any) -> dict[str, Observation]:
    """A teacher that gives every head this attention, B H N."""
    return {"teacher": Observation(layout(rows, columns), attention, **more)}


class TestMaps:
    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 99), st.sampled_from([None, (1,), (2, 0)]), st.sampled_from([None, 0.5, 1.0]))
    def test_every_normalisation_keeps_the_order_and_its_own_scale(self, seed: int, heads: Any, clip: float | None):
        attention = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(seed)) * 0.1
        mean = attention[:, list(heads or (0, 1, 2))].mean(dim=1)
        result = {
            how: TeacherAttention("teacher", heads, how, clip)(observed(attention))
            for how in ("none", "sum", "minmax", "rank")
        }
        torch.testing.assert_close(result["sum"].sum(dim=1), torch.ones(2))
        assert (result["minmax"].amin(dim=1) == 0).all()
        torch.testing.assert_close(result["minmax"].amax(dim=1), torch.ones(2))
        if clip != 0.5:
            torch.testing.assert_close(result["rank"].sort(dim=1).values, (torch.arange(12) + 1).expand(2, -1) / 12)
            assert torch.equal(result["none"], mean)
        for one in result.values():
            assert (one.gather(1, mean.argsort(dim=1)).diff(dim=1) >= 0).all()

    def test_an_outlier_is_cut_at_the_quantile(self):
        attention = torch.full((1, 1, 11), 0.01)
        attention[0, 0, 4] = 0.9
        cut = TeacherAttention("teacher", normalise="none", clip=0.9)(observed(attention, 1, 11))
        assert torch.equal(cut, torch.full((1, 11), 0.01))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": (0, 7)}, "the teacher has 3 heads, numbered from 0; got 0, 7"),
            ({"heads": ()}, "one at least"),
            ({"clip": 0.0}, "above 0 and at most 1; got 0.0"),
        ],
    )
    def test_what_no_map_can_be(self, options: dict, message: str):
        with pytest.raises(ValueError, match=message):
            TeacherAttention("teacher", **options)(observed(torch.rand(1, 3, 12)))

    def test_a_teacher_that_sees_other_tokens_is_refused(self):
        with pytest.raises(ValueError, match="the attention map has 12 tokens and the student 20"):
            AttentionGuided(TeacherAttention("teacher"))(
                tokens(layout(4, 5), 2), observed(torch.rand(2, 1, 12)), keyed(torch.arange(2))
            )


class TestFusions:
    @pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS)
    @pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
    def test_the_order_of_tokens_is_no_matter(self, fuse: Any, weight: float):
        teacher, student = maps()
        order = torch.randperm(12)
        torch.testing.assert_close(
            fuse(teacher, student, weight)[:, order], fuse(teacher[:, order], student[:, order], weight)
        )

    @pytest.mark.parametrize("name", WEIGHTED)
    def test_a_weight_of_0_or_1_gives_the_pure_map(self, name: str):
        teacher, student = maps()
        for weight, alone in ((0.0, teacher), (1.0, student)):
            fused = FUSIONS[name](teacher, student, weight)
            if name == "mean-rank":
                assert torch.equal(fused.argsort(dim=1), alone.argsort(dim=1))
            else:
                torch.testing.assert_close(fused, alone)
        assert torch.equal(FUSIONS["linear"](teacher, student, 0.0), teacher)

    @pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS)
    def test_the_two_are_treated_alike(self, fuse: Any):
        teacher, student = maps()
        torch.testing.assert_close(fuse(teacher, student, 0.3), fuse(student, teacher, 0.7))

    @pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS)
    def test_two_equal_maps_give_their_order(self, fuse: Any):
        teacher, _ = maps()
        assert torch.equal(fuse(teacher, teacher.clone(), 0.3).argsort(dim=1), teacher.argsort(dim=1))

    def test_the_formulas(self):
        t, s = maps()
        expected = {
            "linear": 0.7 * t + 0.3 * s,
            "attention-weighted": (0.7 * t * t + 0.3 * s * s) / (0.7 * t + 0.3 * s),
            "geometric": t**0.7 * s**0.3,
            "maximum": torch.where(t > s, t, s),
            "product": t * s,
        }
        for name, truth in expected.items():
            torch.testing.assert_close(FUSIONS[name](t, s, 0.3), truth)

    def test_the_sharper_map_counts_more(self):
        even, sharp = torch.full((1, 12), 1 / 12), torch.eye(12)[:1]
        torch.testing.assert_close(entropy(even), torch.tensor([[12.0]]).log())
        assert entropy(sharp) == 0
        fused = FUSIONS["entropy-gated"](even, sharp, 0.5)
        torch.testing.assert_close(fused, even + (sharp - even) * 12 / 13)  # perplexities 12 and 1


class TestDraws:
    def test_gumbel_hides_as_multinomial_draws_without_replacement(self):
        share = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
        count = 20_000
        score = Gumbel()(share.expand(count, -1), keyed(sample_keys(0, 0, range(count))))
        order = score.argsort(dim=1, descending=True)
        truth = torch.multinomial(share.expand(count, -1), 6, generator=torch.Generator().manual_seed(0))
        for k in range(1, 6):
            mine, theirs = ((o[:, :k, None] == torch.arange(6)).any(dim=1).float().mean(dim=0) for o in (order, truth))
            spread = (2 * theirs * (1 - theirs) / count).sqrt() + 1e-3
            assert ((mine - theirs).abs() < 4 * spread).all(), k

    def test_a_token_without_attention_is_hidden_last_and_nothing_is_lost(self):
        attention = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).expand(64, -1)
        score = Gumbel()(attention, keyed(sample_keys(0, 0, range(64))))
        assert score.isfinite().all()
        assert (score[:, [1, 3]].amin(dim=1) > score[:, [0, 2]].amax(dim=1)).all()

    def test_the_temperature_goes_from_sorted_to_even(self):
        teacher, _ = maps(count=1)
        batch = keyed(sample_keys(0, 0, range(2000)))
        wide = teacher.expand(2000, -1)
        assert (Gumbel(1e-3)(wide, batch).argsort(dim=1) == teacher.argsort(dim=1)).all(dim=1).float().mean() > 0.9
        first = Gumbel(1e3)(wide, batch).argmax(dim=1).bincount(minlength=12) / 2000
        assert (first - 1 / 12).abs().max() < 0.03

    def test_hard_low_and_keep(self):
        teacher, _ = maps()
        batch = keyed(torch.arange(4))
        assert torch.equal(Hard()(teacher, batch), teacher)
        assert torch.equal(Reversed(Hard())(teacher, batch), -teacher)
        assert torch.equal(Reversed(Gumbel())(teacher, batch), -Gumbel()(teacher, batch))

    @pytest.mark.parametrize(("top", "shown"), [(0.25, 0.25), (0.5, 0.1), (0.1, 0.0), (1.0, 0.3)])
    def test_hints_are_a_few_of_the_most_attended(self, top: float, shown: float):
        teacher, _ = maps(num_tokens=40, count=64)
        score = Hint(top, shown)(teacher, keyed(sample_keys(0, 0, range(64))))
        order = score.argsort(dim=1, descending=True)
        rank = teacher.argsort(dim=1, descending=True).argsort(dim=1).gather(1, order)  # of the hidden, first first
        num_shown = int(shown * 40)
        assert (rank[:, 40 - num_shown :] < top * 40).all()
        rest = rank[:, : 40 - num_shown]
        assert (rest.diff(dim=1) > 0).all(), "the others are hidden by their attention"
        if 0 < num_shown < top * 40:
            assert len(rank[:, 40 - num_shown :].unique()) == round(top * 40), "and it is a lottery"

    @pytest.mark.parametrize("num_tokens", [1, 4, 9, 16, 33])
    def test_however_few_the_tokens_one_of_the_most_attended_stays_visible(self, num_tokens: int):
        teacher, _ = maps(num_tokens=num_tokens, count=64)
        score = Hint()(teacher, keyed(sample_keys(0, 0, range(64))))
        rank = teacher.argsort(dim=1, descending=True).argsort(dim=1)
        last = rank.gather(1, score.argmin(dim=1, keepdim=True))  # the token that is hidden last
        assert (last < max(1, 0.1 * num_tokens)).all()
        others = rank.gather(1, score.argsort(dim=1, descending=True))[:, :-1]
        assert (others.diff(dim=1) > 0).all(), "the others are hidden by their attention"

    def test_noise_has_the_image_s_own_spread(self):
        teacher, _ = maps(count=1, num_tokens=48)
        batch = keyed(sample_keys(0, 0, range(500)))
        wide = teacher.expand(500, -1)
        assert torch.equal(Noisy(0.0)(wide, batch), wide)
        noise = Noisy(1.0)(wide, batch)
        assert noise.mean().item() == pytest.approx(teacher.mean().item(), rel=0.05)
        assert noise.std().item() == pytest.approx(teacher.std().item(), rel=0.05)
        torch.testing.assert_close(Noisy(0.25)(wide, batch), 0.25 * noise + 0.75 * wide)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Gumbel(0.0), "above 0; got 0.0"),
            (lambda: Noisy(1.5), "from 0 to 1; got 1.5"),
            (lambda: Hint(0.1, 0.2), "got shown=0.2 of top=0.1"),
        ],
    )
    def test_what_no_draw_can_be(self, make: Any, message: str):
        with pytest.raises(ValueError, match=message):
            make()


class TestMasks:
    def test_what_is_attended_to_is_hidden_more_often_or_less(self):
        attention = torch.tensor([0.30, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])
        count = 4000
        by_teacher = observed(attention.expand(count, 1, -1))
        on, key = layout(3, 4), keyed(sample_keys(0, 0, range(count)))
        visible = {}
        for name, draw in (("high", Gumbel()), ("keep", Reversed(Gumbel())), ("hard", Hard())):
            masker = Masker(AttentionGuided(TeacherAttention("teacher"), draw), 0.25, 0.75)
            mask = masker(tokens(on, count), by_teacher, key)
            assert mask.visible.shape == (count, 3)
            visible[name] = torch.zeros(count, 12).scatter(1, mask.visible, 1.0).mean(dim=0)
        assert visible["high"][0] < 0.1 < visible["high"][-1]
        assert visible["keep"][0] > 0.6 > visible["keep"][-1]
        assert visible["hard"].tolist() == [0.0] * 9 + [1.0] * 3

    @pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
    def test_more_and_more_of_the_hardest_are_hidden(self, progress: float):
        error = torch.rand(64, 12)
        observations = {"student": Observation(layout(3, 4), error=error)}
        on = replace(keyed(sample_keys(0, 0, range(64))), progress=torch.tensor(progress))
        mask = Masker(HardestFirst("student", 0.75), 0.25, 0.75)(tokens(layout(3, 4), 64), observations, on)
        place = error.argsort(dim=1, descending=True).argsort(dim=1).gather(1, mask.predicted)
        sure = int(0.5 * progress * 9)
        assert all(set(range(sure)) <= set(row) for row in place.tolist())
        assert not all(sure in row for row in place.tolist()), "the rest is drawn"


RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cmtmae": (cmtmae, {"teacher": "random"}),
    "cmtmae-cross": (cmtmae, {"teacher": "random", "decoder": "cross", "predicted": 0.25, "blend": "linear"}),
    "cmtmae-all": (cmtmae, {"teacher": "random", "positions": "all"}),
    "attmask": (attmask, {}),
    "milan": (milan, {"teacher": "random"}),
    "hpm": (hpm, {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_hidden_pixels_change_no_latent_when_the_mask_is_held(name: str):
    recipe, options = RECIPES[name]
    model, on = build_of(recipe, **options).eval(), batch()
    held = replace(model.masker, score=Given(torch.rand(3, 24)))
    before = model.encode_decode(on, held)
    hidden = torch.ones(3, 24, dtype=torch.bool).scatter(1, before.mask.visible, False).nonzero()[:, 1].view(3, -1)
    after = model.encode_decode(noisy_where(on, hidden), held)
    assert torch.equal(before.latents.final, after.latents.final)
    for decoder in before.decoded:
        assert torch.equal(before.decoded[decoder], after.decoded[decoder])
    for who, old in before.observations.items():
        for field in ("attention", "features", "error"):
            if getattr(old, field) is not None:
                assert not torch.equal(getattr(old, field), getattr(after.observations[who], field)), "teachers see all"
