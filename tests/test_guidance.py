"""Guidance: maps of attention, what fuses them, what draws from them, who looks, and that no mask leaks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from test_masking import keyed, layout, tokens
from test_model import Given, noisy_where
from tiny import DIALS, batch
from unveil.chance import sample_keys
from unveil.decoder import CrossDecoder, PromptingDecoder, SelfDecoder
from unveil.encoder import SIZES, Encoder
from unveil.masking import (
    FUSIONS,
    Attention,
    Guided,
    Gumbel,
    Hard,
    HardestFirst,
    Hint,
    Masker,
    Noisy,
    Reversed,
    entropy,
)
from unveil.model import MaskedModel, mean_loss
from unveil.objectives import Gate, Ranking
from unveil.recipes import attmask, cmtmae, hpm, milan
from unveil.records import RGB, Mask, Observation, Reading
from unveil.teachers import EMATeacher, Momentum, OnlineTeacher, begin_averages

WEIGHTED = ("linear", "attention-weighted", "geometric", "mean-rank", "entropy-gated")
READING = Reading()


def maps(seed: int = 0, count: int = 4, num_tokens: int = 12) -> tuple[Tensor, Tensor]:
    """Two maps that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, count, num_tokens, generator=generator).pow(3) + 1e-4
    teacher, student = draw / draw.sum(dim=2, keepdim=True)
    return teacher, student


def observed(attention: Tensor, rows: int = 3, columns: int = 4, **more: Any) -> dict[str, Observation]:
    """A teacher that gives every head this attention, B H N."""
    return {"teacher": Observation(layout(rows, columns), attention, **more)}


class TestMaps:
    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 99), st.sampled_from([None, (1,), (2, 0)]), st.sampled_from([None, 0.5, 1.0]))
    def test_every_normalisation_keeps_the_order_and_its_own_scale(self, seed: int, heads: Any, clip: float | None):
        attention = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(seed)) * 0.1
        mean = attention[:, list(heads or (0, 1, 2))].mean(dim=1)
        found = {
            how: Attention("teacher", heads, how, clip)(observed(attention))
            for how in ("none", "sum", "minmax", "rank")
        }
        torch.testing.assert_close(found["sum"].sum(dim=1), torch.ones(2))
        assert (found["minmax"].amin(dim=1) == 0).all()
        torch.testing.assert_close(found["minmax"].amax(dim=1), torch.ones(2))
        if clip != 0.5:
            torch.testing.assert_close(found["rank"].sort(dim=1).values, (torch.arange(12) + 1).expand(2, -1) / 12)
            assert torch.equal(found["none"], mean)
        for one in found.values():
            assert (one.gather(1, mean.argsort(dim=1)).diff(dim=1) >= 0).all()

    def test_an_outlier_is_cut_at_the_quantile(self):
        attention = torch.full((1, 1, 11), 0.01)
        attention[0, 0, 4] = 0.9
        cut = Attention("teacher", normalise="none", clip=0.9)(observed(attention, 1, 11))
        assert torch.equal(cut, torch.full((1, 11), 0.01))

    @pytest.mark.parametrize(
        ("dials", "told"),
        [
            ({"heads": (0, 7)}, "the teacher has 3 heads, numbered from 0; got 0, 7"),
            ({"heads": ()}, "one at least"),
            ({"clip": 0.0}, "above 0 and at most 1; got 0.0"),
        ],
    )
    def test_what_no_map_can_be(self, dials: dict, told: str):
        with pytest.raises(ValueError, match=told):
            Attention("teacher", **dials)(observed(torch.rand(1, 3, 12)))

    def test_a_teacher_that_sees_other_tokens_is_refused(self):
        with pytest.raises(ValueError, match="look at 12 tokens where the student has 20"):
            Guided(Attention("teacher"))(
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
        ("make", "told"),
        [
            (lambda: Gumbel(0.0), "above 0; got 0.0"),
            (lambda: Noisy(1.5), "from 0 to 1; got 1.5"),
            (lambda: Hint(0.1, 0.2), "got shown=0.2 of top=0.1"),
        ],
    )
    def test_what_no_draw_can_be(self, make: Any, told: str):
        with pytest.raises(ValueError, match=told):
            make()


class TestMasks:
    def test_what_is_attended_to_is_hidden_more_often_or_less(self):
        attention = torch.tensor([0.30, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])
        count = 4000
        seen, on, key = observed(attention.expand(count, 1, -1)), layout(3, 4), keyed(sample_keys(0, 0, range(count)))
        visible = {}
        for name, draw in (("high", Gumbel()), ("keep", Reversed(Gumbel())), ("hard", Hard())):
            mask = Masker(Guided(Attention("teacher"), draw), 0.25, 0.75)(tokens(on, count), seen, key)
            assert mask.visible.shape == (count, 3)
            visible[name] = torch.zeros(count, 12).scatter(1, mask.visible, 1.0).mean(dim=0)
        assert visible["high"][0] < 0.1 < visible["high"][-1]
        assert visible["keep"][0] > 0.6 > visible["keep"][-1]
        assert visible["hard"].tolist() == [0.0] * 9 + [1.0] * 3

    @pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
    def test_more_and_more_of_the_hardest_are_hidden(self, progress: float):
        error = torch.rand(64, 12)
        seen = {"student": Observation(layout(3, 4), error=error)}
        on = replace(keyed(sample_keys(0, 0, range(64))), progress=torch.tensor(progress))
        mask = Masker(HardestFirst("student", 0.75), 0.25, 0.75)(tokens(layout(3, 4), 64), seen, on)
        place = error.argsort(dim=1, descending=True).argsort(dim=1).gather(1, mask.predicted)
        sure = int(0.5 * progress * 9)
        assert all(set(range(sure)) <= set(row) for row in place.tolist())
        assert not all(sure in row for row in place.tolist()), "the rest is drawn"


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
        teacher.after_step({}, torch.tensor(False))
        assert all(torch.equal(a, b) for a, b in zip(teacher.encoder.parameters(), before, strict=True))
        teacher.after_step({}, torch.tensor(True))
        for mine, old, its in zip(teacher.encoder.parameters(), before, student.parameters(), strict=True):
            torch.testing.assert_close(mine, 0.9 * old + 0.1 * its)
            assert mine.dtype == torch.float32
            assert not mine.requires_grad

    def test_its_momentum_is_that_of_the_step(self):
        model = build(attmask, momentum=0.0, momentum_end=1.0)
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
        begin_averages(model)
        for mine, its in zip(model["teacher"].encoder.parameters(), model["student"].parameters(), strict=True):
            assert torch.equal(mine, its)
            assert mine is not its

    def test_online_it_is_the_student_without_gradient_and_without_weights_of_its_own(self):
        student, on = encoder(), batch()
        tokens = student.embed(on)
        seen = OnlineTeacher(student, READING).observe(on, tokens)
        assert not list(OnlineTeacher(student, READING).parameters())
        assert not seen.features.requires_grad
        truth = student.observe(tokens, READING)
        assert torch.equal(seen.features, truth.features)
        assert torch.equal(seen.attention, truth.attention)

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
        asked = decoder.asks(mask, tokens.layout)
        decoder.answers = "all"
        every = decoder.asks(mask, tokens.layout)
        assert torch.equal(every.ids[:, :8], mask.visible)
        assert torch.equal(every.ids[:, 8:], asked.ids)
        assert (every.weight == 1).all()
        answers = decoder(latents, every)
        decoder.answers = "predicted"
        torch.testing.assert_close(answers[:, 8:], decoder(latents, asked))

    def test_a_visible_token_answers_from_its_own_slot(self):
        """Not from a mask token: where blocks change nothing, its answer is its embedded latent."""
        student, on = encoder(), batch()
        decoder = SelfDecoder("rgb", student, 16, 1, 2, answers="all")
        with torch.no_grad():
            for block in decoder.blocks:
                block.attn.proj.weight.zero_(), block.mlp[2].weight.zero_()
        tokens = student.embed(on)
        mask = Mask(torch.tensor([[5, 2]] * 3), torch.tensor([[0, 1, 3]] * 3))
        latents = student(tokens.take(mask.visible))
        answers = decoder(latents, decoder.asks(mask, tokens.layout))
        own = decoder.norm(decoder.embed(latents.final[:, 1:]) + decoder.positions(tokens.layout.grid)[[5, 2]])
        torch.testing.assert_close(answers[:, :2], own)


class Guess(nn.Module):
    def __init__(self, values: Tensor):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, seen: Any, queries: Any) -> Tensor:
        return self.values


class Erring:
    """Stands for an objective whose errors are known."""

    weight, decoder = 1.0, "pixels"

    def __init__(self, error: Tensor, known: Tensor):
        self.error, self.known = error, known

    def errors(self, seen: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return self.error, self.known


class Asked:
    def __init__(self) -> None:
        self.queries = {"pixels": None}


class TestRanking:
    def test_it_is_the_mean_over_pairs(self):
        error, guess = torch.rand(3, 5), torch.randn(3, 5)
        known = torch.ones(3, 5)
        known[1, 2] = 0
        known[2] = 0
        total, count = Ranking("r", [Erring(error, known)], Guess(guess))(Asked(), None)  # type: ignore[list-item]
        sums = []
        for b in range(3):
            pairs = [
                -(guess[b, i] - guess[b, j]).sigmoid().log()
                for i, j in itertools.permutations(range(5), 2)
                if error[b, i] > error[b, j] and known[b, i] and known[b, j]
            ]
            sums.append(sum(pairs) / len(pairs) if pairs else torch.tensor(0.0))
        torch.testing.assert_close(total, sum(sums))
        assert count == 2

    def test_it_learns_an_order(self):
        error, guess = torch.rand(4, 8), Guess(torch.zeros(4, 8))
        ranking = Ranking("r", [Erring(error, torch.ones(4, 8))], guess)  # type: ignore[list-item]
        optimizer = torch.optim.Adam(guess.parameters(), 0.3)
        for _ in range(50):
            optimizer.zero_grad()
            ranking(Asked(), None)[0].backward()
            optimizer.step()
        assert torch.equal(guess.values.argsort(dim=1), error.argsort(dim=1))


def build(recipe: Any, stage: int = -1, **dials: Any) -> MaskedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (24, 2, 2))
        return recipe.recipe(**{**DIALS, "visible": 0.5, **dials}).stages[stage].build()


class TestGate:
    def test_it_begins_near_the_linear_fusion_and_stays_between_the_two(self):
        teacher, student = maps()
        fused = Gate()(teacher, student, 0.3)
        assert ((fused - teacher) * (fused - student) <= 0).all()
        order = torch.randperm(12)
        torch.manual_seed(1)
        gate = Gate()
        torch.testing.assert_close(
            gate(teacher, student, 0.3)[:, order], gate(teacher[:, order], student[:, order], 0.3)
        )

    def test_its_weights_move_by_its_own_objective_and_the_mask_gives_them_none(self):
        model, on = build(cmtmae, teacher="random", fusion="learned"), batch(8)
        gate = {n: p for n, p in model.named_parameters() if "gate" in n}
        assert len(gate) == 4
        own = model.objectives[-1].name
        losses = model(on)
        mean_loss({name: loss for name, loss in losses.items() if name != own}).backward()
        assert all(p.grad is None for p in gate.values())
        model.zero_grad()
        mean_loss({own: model(on)[own]}).backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None}
        assert moved == set(gate), "and its objective moves nothing else"
        before = {n: p.clone() for n, p in gate.items()}
        torch.optim.SGD(gate.values(), lr=1.0).step()
        assert all(not torch.equal(p, before[n]) for n, p in gate.items())

    def test_it_learns_to_look_where_errors_are(self):
        """The errors follow the student's attention, so the gate comes to trust the student."""
        teacher, student = maps(count=64)
        gate = Gate()

        class Fused(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gate = gate

            def forward(self, seen: Any, queries: Any) -> Tensor:
                return self.gate(teacher, student, 0.3).log()

        ranking = Ranking("gate", [Erring(student, torch.ones(64, 12))], Fused())  # type: ignore[list-item]
        optimizer = torch.optim.Adam(gate.parameters(), 0.02)

        def distance() -> float:
            return (gate(teacher, student, 0.3) - student).abs().sum().item()

        before = distance()
        for _ in range(60):
            optimizer.zero_grad()
            (ranking(Asked(), None)[0] / 64).backward()
            optimizer.step()
        assert distance() < 0.5 * before


RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cmtmae": (cmtmae, {"teacher": "random"}),
    "cmtmae-cross": (cmtmae, {"teacher": "random", "decoder": "cross", "predicted": 0.25, "blend": "linear"}),
    "cmtmae-all": (cmtmae, {"teacher": "random", "positions": "all"}),
    "attmask": (attmask, {}),
    "milan": (milan, {"teacher": "random", "projected": False}),
    "hpm": (hpm, {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_hidden_pixels_change_no_latent_when_the_mask_is_held(name: str):
    recipe, dials = RECIPES[name]
    model, on = build(recipe, **dials).eval(), batch()
    held = replace(model.masker, score=Given(torch.rand(3, 24)))
    before = model.imagine(on, held)
    hidden = torch.ones(3, 24, dtype=torch.bool).scatter(1, before.mask.visible, False).nonzero()[:, 1].view(3, -1)
    after = model.imagine(noisy_where(on, hidden), held)
    assert torch.equal(before.latents.final, after.latents.final)
    for decoder in before.decoded:
        assert torch.equal(before.decoded[decoder], after.decoded[decoder])
    for who, seen in before.observations.items():
        for part in ("attention", "features", "error"):
            if getattr(seen, part) is not None:
                assert not torch.equal(getattr(seen, part), getattr(after.observations[who], part)), "teachers see all"
