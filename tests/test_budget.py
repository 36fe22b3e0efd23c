"""Budgets: shares of the true distribution, exact totals, nobody's tokens lost; maps of several modalities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unveil.modeling.adaptive_budget import AdaptiveBudget
from unveil.modeling.masking import (
    AttentionGuided,
    Blockwise,
    ByModality,
    DirichletBudget,
    Hard,
    IfObserved,
    LossMap,
    Masker,
    Noisy,
    RandomHeads,
    TeacherAttention,
    Uniform,
)
from unveil.modeling.masking.by_modality import log_dirichlet_draw
from unveil.modeling.rng import SampleRng, sample_keys, step_key
from unveil.modeling.types import Batch, Layout, Observation, Tokens

NAMES = ("rgb", "depth", "semseg")


@dataclass(frozen=True)
class Given:
    """A score that was given."""

    values: Tensor

    def __call__(self, tokens, observations, batch) -> Tensor:
        return self.values


def layout(side: int = 4, names: tuple[str, ...] = NAMES) -> Layout:
    cells = side * side
    return Layout({name: slice(i * cells, (i + 1) * cells) for i, name in enumerate(names)}, (side, side))


def tokens(on: Layout, count: int, missing: Tensor | None = None) -> Tokens:
    ids = torch.arange(on.num_tokens).expand(count, -1)
    return Tokens(torch.zeros(count, on.num_tokens, 2), ids, on, missing)


def batch(count: int, seed: int = 0) -> Batch:
    return Batch({}, sample_keys(seed, 0, range(count)), torch.zeros(()))


def visible_counts(masker: Masker, on: Layout, count: int, seed: int = 0, missing: Tensor | None = None) -> Tensor:
    mask = masker(tokens(on, count, missing), {}, batch(count, seed))
    return torch.stack([(mask.visible // on.num_cells == m).sum(dim=1) for m in range(len(on.spans))], dim=1)


@pytest.mark.parametrize("alpha", [(1.0, 1.0, 1.0), (0.2, 0.2, 0.2), (3.0, 3.0, 3.0), (0.5, 2.0, 7.0)])
def test_shares_follow_the_dirichlet(alpha: tuple[float, ...]):
    """Means, variances and the whole distribution of a share (a beta), within sampling error."""
    stats = pytest.importorskip("scipy.stats", reason="the true distribution is scipy's")
    n = 4000
    shares = (
        log_dirichlet_draw(SampleRng(sample_keys(1, 0, range(n))), torch.tensor([alpha]).expand(n, -1)).exp().double()
    )
    assert torch.allclose(shares.sum(dim=1), torch.ones(n, dtype=torch.float64), atol=1e-5)
    for m, a in enumerate(alpha):
        rest = sum(alpha) - a
        assert stats.kstest(shares[:, m].numpy(), stats.beta(a, rest).cdf).pvalue > 1e-3


def test_counts_follow_the_published_sampler():
    """The published way: round the shares, then mend the total at random. Ours differs by a token at most."""
    on, n = layout(14), 3000
    masker = Masker(DirichletBudget(), 1 / 6, 5 / 6)
    counts = visible_counts(masker, on, n)
    shares = log_dirichlet_draw(batch(n).rng, torch.ones(n, 3)).exp()
    assert ((counts - (98 * shares).round()).abs() <= 1).all()
    spread = math.sqrt(98**2 / 18 / n)  # of the mean of n shares of a flat Dirichlet
    assert torch.allclose(counts.double().mean(dim=0), torch.full((3,), 98 / 3, dtype=torch.float64), atol=4 * spread)


@given(
    st.integers(2, 6), st.integers(1, 3), st.floats(0.05, 0.95), st.floats(0.01, 20),
    st.sampled_from(["all", "uniform"]), st.integers(0, 9), st.data(),
)  # fmt: skip
def test_every_sample_sees_as_many_tokens_and_none_that_it_has_not(side, modalities, visible, alpha, tasks, seed, data):
    on = layout(side, NAMES[:modalities])
    has = torch.tensor(data.draw(st.lists(st.sampled_from(range(modalities)), min_size=5, max_size=5)))
    missing = torch.ones(5, modalities, dtype=torch.bool).scatter(1, has[:, None], False)  # each has one at least
    missing &= torch.tensor(data.draw(st.lists(st.booleans(), min_size=modalities, max_size=modalities)))
    masker = Masker(DirichletBudget(alpha=alpha, tasks=tasks), visible, 1 - visible)
    total = int(visible * on.num_tokens + 1e-6)
    if not 0 < total <= int((~missing).sum(dim=1).min()) * on.num_cells:
        return
    counts = visible_counts(masker, on, 5, seed, missing.repeat_interleave(on.num_cells, dim=1))
    assert (counts.sum(dim=1) == total).all()
    assert not (counts * missing).any()
    assert (counts <= on.num_cells).all()


def test_a_modality_that_cannot_take_its_share_passes_it_on():
    masker = Masker(DirichletBudget(alpha={"rgb": 1e6, "depth": 1.0, "semseg": 1.0}), 0.5, 0.5)
    counts = visible_counts(masker, layout(4), 20)
    assert (counts[:, 0] == 16).all()
    assert (counts.sum(dim=1) == 24).all()


def test_tasks_are_sampled_uniformly():
    """All seven sets of three modalities come alike often."""
    on, n = layout(14), 3500
    counts = visible_counts(Masker(DirichletBudget(alpha=50.0, tasks="uniform"), 1 / 6, 5 / 6), on, n)
    sets = ((counts > 1) * torch.tensor([1, 2, 4])).sum(dim=1)
    result = torch.bincount(sets, minlength=8)[1:].double()
    assert ((result - n / 7).abs() < 4 * math.sqrt(n / 7)).all()


@given(st.integers(0, 99), st.floats(0.1, 0.9))
def test_inside_a_modality_the_highest_are_hidden(seed: int, visible: float):
    on = layout(4)
    guide = SampleRng(sample_keys(seed, 1, range(4))).uniform("guide", on.num_tokens)
    mask = Masker(DirichletBudget(Given(guide)), visible, 1 - visible)(tokens(on, 4), {}, batch(4, seed))
    is_visible = torch.zeros(4, on.num_tokens, dtype=torch.bool).scatter(1, mask.visible, True)
    for span in on.spans.values():
        shown, hidden = guide[:, span].clone(), guide[:, span].clone()
        shown[~is_visible[:, span]] = -1
        hidden[is_visible[:, span]] = 2
        assert (shown.amax(dim=1) < hidden.amin(dim=1)).all()


@pytest.mark.parametrize("alpha", [0.0, -1.0, {"rgb": 1.0, "depth": 0.0}])
def test_a_concentration_is_above_0(alpha):
    with pytest.raises(ValueError, match="concentration of a Dirichlet is above 0"):
        DirichletBudget(alpha=alpha)


def observed(on: Layout, count: int, heads: int = 4) -> dict[str, Observation]:
    values = SampleRng(sample_keys(3, 0, range(count))).uniform("attention", heads * on.num_tokens)
    return {"student": Observation(on, values.unflatten(1, (heads, -1)))}


def test_each_modality_is_scored_alone():
    on, count = layout(4), 3
    observations = observed(on, count)
    score = ByModality(AttentionGuided(TeacherAttention("student", normalise="none"), Hard()), {"depth": Uniform()})
    result = score(tokens(on, count), observations, batch(count))
    mean = observations["student"].attention.mean(dim=1)
    assert torch.equal(result[:, on.spans["rgb"]], mean[:, on.spans["rgb"]])
    assert not torch.equal(result[:, on.spans["depth"]], mean[:, on.spans["depth"]])
    block = ByModality(Blockwise())(tokens(on, count), {}, batch(count))
    assert not torch.equal(block[:, on.spans["rgb"]], block[:, on.spans["depth"]]), "their blocks are drawn apart"


def test_noise_has_the_mean_and_spread_of_its_own_modality():
    on, count = layout(14), 16
    attention = observed(on, count)["student"].attention.clone()
    attention[:, :, on.spans["depth"]] *= 100
    observations = {"student": Observation(on, attention)}
    gaze = TeacherAttention("student", normalise="none")
    result = ByModality(AttentionGuided(gaze, Noisy(beta=1.0)))(tokens(on, count), observations, batch(count))
    for span in on.spans.values():
        truth = attention.mean(dim=1)[:, span]
        assert result[:, span].mean().item() == pytest.approx(truth.mean().item(), rel=0.02)
        assert result[:, span].std().item() == pytest.approx(truth.std(dim=1).mean().item(), rel=0.1)


def test_a_random_few_heads_guide():
    """The number of heads is uniform in 1..H, and so is each head's chance to be among them."""
    on, count, heads = layout(2, ("rgb",)), 3000, 4
    attention = torch.zeros(count, heads, on.num_tokens)
    for head in range(heads):
        attention[:, head, head] = 1.0  # each head looks at its own token
    score = RandomHeads("student", AttentionGuided(TeacherAttention("student", normalise="none"), Hard()))
    result = score(tokens(on, count), {"student": Observation(on, attention)}, batch(count))
    number = (result > 0).sum(dim=1)
    assert torch.allclose(result.sum(dim=1), torch.ones(count)), "they are averaged"
    times = torch.bincount(number, minlength=heads + 1)[1:].double()
    assert ((times - count / heads).abs() < 4 * math.sqrt(count / heads)).all()
    often = (result > 0).double().mean(dim=0)
    assert torch.allclose(often, torch.full((heads,), 0.625, dtype=torch.float64), atol=0.04)


def test_heads_drawn_once_a_step_are_those_of_seed_and_step():
    """All samples have the same, whatever their micro-batch or process; another step or seed has others."""
    on, count, heads = layout(2, ("rgb",)), 6, 4
    attention = torch.zeros(count, heads, on.num_tokens)
    for head in range(heads):
        attention[:, head, head] = 1.0
    guided = AttentionGuided(TeacherAttention("student", normalise="none"), Hard())

    def heads_of(given: Batch) -> Tensor:
        score = RandomHeads("student", guided, "step")
        looks = {"student": Observation(on, attention[: len(given)])}
        return score(tokens(on, len(given)), looks, given)[:, :heads]

    drawn = []
    for seed in range(2):
        for number in range(200):
            whole = replace(batch(count), step_key=step_key(seed, number))
            result = heads_of(whole)
            assert (result == result[:1]).all(), "one draw for the step"
            rank = replace(whole[3:], key=whole.key[3:] + 1)  # other samples: of another process
            assert torch.equal(heads_of(rank), result[3:])
            drawn.append(result[0])
    numbers = torch.bincount((torch.stack(drawn) > 0).sum(dim=1), minlength=heads + 1)[1:].double()
    assert ((numbers - 100).abs() < 4 * 10).all(), "the number of heads is uniform in 1..H"
    assert not torch.equal(torch.stack(drawn[:200]), torch.stack(drawn[200:])), "another seed has others"


def test_without_a_look_the_other_score_decides():
    on, count = layout(4), 3
    score = IfObserved("student", AttentionGuided(TeacherAttention("student", normalise="none"), Hard()), Uniform())
    blind = {"student": Observation(on)}
    assert torch.equal(score(tokens(on, count), blind, batch(count)), batch(count).rng.uniform("mask", 48))
    observations = observed(on, count)
    assert torch.equal(
        score(tokens(on, count), observations, batch(count)), observations["student"].attention.mean(dim=1)
    )
    errors = {"student": Observation(on, error=observations["student"].attention[:, 0])}
    guided = IfObserved("student", AttentionGuided(LossMap("student"), Hard()))
    assert torch.equal(guided(tokens(on, count), errors, batch(count)), errors["student"].error)


# A budget with a memory

LOSSES = {name: f"{name} loss" for name in NAMES}


def step(budget: AdaptiveBudget, values: tuple[float, ...], made: bool = True) -> None:
    losses = {LOSSES[name]: torch.tensor(value) for name, value in zip(NAMES, values, strict=True)}
    budget.after_step(losses, torch.tensor(made))


@pytest.mark.parametrize("harder_gets", ["visible", "hidden"])
def test_the_harder_modality_gets_more(harder_gets):
    budget = AdaptiveBudget(Uniform(), LOSSES, harder_gets=harder_gets, momentum=0.0)
    assert torch.allclose(budget.concentrations, torch.ones(3)), "it begins with the symmetric one"
    step(budget, (4.0, 0.1, 2.0))
    assert torch.allclose(budget.concentrations, torch.ones(3)), "whatever the units of the losses"
    step(budget, (2.0, 0.1, 0.2))  # depth has not fallen at all, semantics most
    order = budget.concentrations.argsort(descending=harder_gets == "visible").tolist()
    assert order == [1, 0, 2]
    on = layout(14)
    counts = visible_counts(Masker(budget, 1 / 6, 5 / 6), on, 500).double().mean(dim=0)
    assert (counts[1] > counts[2]) == (harder_gets == "visible")


def test_it_moves_slowly_never_below_its_floor_and_not_without_an_update():
    budget = AdaptiveBudget(Uniform(), LOSSES, floor=0.3, momentum=0.9, temperature=0.01)
    step(budget, (1.0, 1.0, 1.0))
    step(budget, (math.nan, math.nan, math.nan), made=False)
    assert budget.average.tolist() == [1.0, 1.0, 1.0]
    step(budget, (0.0, 1.0, 1.0))
    assert budget.average.tolist() == pytest.approx([0.9, 1.0, 1.0])
    assert budget.concentrations[0].item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="temperature of an adaptive budget is above 0"):
        AdaptiveBudget(Uniform(), LOSSES, temperature=0.0)
