"""k-NN and the linear probes, each against an independent computation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from unveil.evaluation.datasets import stratified_split
from unveil.evaluation.protocols import linear_lbfgs
from unveil.evaluation.protocols.knn import TEMPERATURE, Knn, knn_votes
from unveil.evaluation.protocols.knn_whitened import KnnWhitened
from unveil.evaluation.protocols.linear import LARS, Linear, _Cached, _Probe, _train
from unveil.evaluation.protocols.linear_lbfgs import LinearLBFGS, _covariance, logistic_regression
from unveil.evaluation.types import Context, EvaluationProtocol, FeatureSplit, Score, accuracies
from unveil.modeling import normalizer
from unveil.modeling.normalizer import SHRINKAGE, whitening

PROTOCOLS = [Knn(), KnnWhitened(), Linear(), LinearLBFGS()]


def measured(protocol: EvaluationProtocol, split: FeatureSplit, seed: int = 0) -> Score:
    """On features, whatever encoder they are of."""
    score = protocol.run(None, split, Context(seed))
    assert score is not None
    return score


def clouds(apart: float, num_classes: int = 3, per_class: int = 40, dim: int = 8, seed: int = 0) -> FeatureSplit:
    """Gaussian clouds round random centres that lie `apart` standard deviations from the origin."""
    rng = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(num_classes, dim, generator=rng), dim=1) * apart

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(num_classes).repeat(per_class)
        return centres[labels] + torch.randn(len(labels), dim, generator=rng), labels

    return FeatureSplit(*draw(), *draw(), num_classes)


def votes_by_hand(split: FeatureSplit, k: int) -> np.ndarray:
    train, test = split.train.double().numpy(), split.test.double().numpy()
    votes = np.zeros((len(test), split.num_classes))
    for i, x in enumerate(test):
        cosines = [x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for y in train]
        for j in sorted(range(len(train)), key=lambda j: -cosines[j])[:k]:
            votes[i, split.train_labels[j]] += math.exp(cosines[j] / TEMPERATURE)
    return votes


def test_knn_votes_equal_a_sort_of_all_pairs():
    split, ks = clouds(apart=2), [1, 7, 120]
    for k, votes in zip(ks, knn_votes(split, ks), strict=True):
        np.testing.assert_allclose(votes.numpy(), votes_by_hand(split, k), rtol=1e-4)


def test_whitened_features_are_uncorrelated_and_nearly_of_one_length():
    features = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 12) + 3
    mean, directions = whitening(features)
    made = ((features - mean) @ directions).double()
    covariance = (made.T @ made / len(made)).numpy()
    variances = np.linalg.eigvalsh(np.cov(features.double().numpy().T, bias=True))
    expected = variances / (variances + SHRINKAGE * variances.mean())
    np.testing.assert_allclose(covariance, np.diag(expected), atol=1e-4)


def test_whitening_is_the_same_with_fewer_samples_than_dimensions():
    features = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    mean, directions = whitening(features)
    assert directions.shape == (50, 29)  # less the mean
    centred = (features - mean).double()
    variances, full = torch.linalg.eigh(centred.T @ centred / 30)
    by_hand = centred @ full / (variances.clamp_min(0) + SHRINKAGE * variances.mean()).sqrt()
    made = ((features - mean) @ directions).double()
    np.testing.assert_allclose((made @ made.T).numpy(), (by_hand @ by_hand.T).numpy(), atol=1e-3)


def test_whitening_of_many_dimensions_gives_the_same_cosines(monkeypatch):
    features = torch.randn(90, 20, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 20) + 2
    principal, root = [whitening(features)], [monkeypatch.setattr(normalizer, "MANY", 19), whitening(features)][1:]
    made = [((features - mean) @ directions).double() for mean, directions in (*principal, *root)]
    assert not torch.allclose(*made, atol=0.1)
    np.testing.assert_allclose((made[0] @ made[0].T).numpy(), (made[1] @ made[1].T).numpy(), atol=1e-3)
    monkeypatch.setattr(torch.linalg, "eigh", None)  # not needed any more
    assert whitening(features)[1].shape == (20, 20)


def test_whitening_takes_as_many_samples_as_it_can_solve(monkeypatch):
    monkeypatch.setattr("unveil.modeling.normalizer.MAX_SIDE", 16)
    mean, directions = whitening(torch.randn(200, 40, generator=torch.Generator().manual_seed(2)))
    assert directions.shape == (40, 16)
    assert mean.shape == (40,)


def test_whitened_neighbours_see_past_a_long_direction_that_says_nothing():
    split = clouds(apart=3)
    stretch = torch.ones(8)
    stretch[0] = 100
    long = replace(split, train=split.train * stretch + 50, test=split.test * stretch + 50)
    result = measured(KnnWhitened(), long).metrics["accuracy"]
    assert result > measured(Knn(), long).metrics["accuracy"] + 0.1
    assert result == pytest.approx(measured(KnnWhitened(), split).metrics["accuracy"], abs=0.1)


def test_features_that_never_vary_are_whitened_to_a_tie():
    constant = torch.ones(120, 8)
    assert whitening(constant)[1].isfinite().all()
    split = replace(clouds(apart=3), train=constant, test=constant)
    assert measured(KnnWhitened(), split).metrics["accuracy"] == 0, "all classes score alike, and a tie is a miss"


def test_knn_agrees_with_sklearn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    split = clouds(apart=2)
    theirs = neighbors.KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(split.train.numpy(), split.train_labels.numpy())
    expected = theirs.score(split.test.numpy(), split.test_labels.numpy())
    assert measured(Knn(), split).metrics["accuracy"] == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(budget=st.integers(1, 5000), seed=st.integers(0, 9))
def test_knn_does_not_depend_on_the_chunks(budget, seed):
    split = clouds(apart=1, per_class=12, seed=seed)
    for chunked, whole in zip(knn_votes(split, [1, 5, 20], budget), knn_votes(split, [1, 5, 20]), strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=0)


def test_knn_never_asks_for_more_neighbours_than_there_are():
    result = measured(Knn(), clouds(apart=5, per_class=4))
    assert result.settings["k"] == 12
    assert set(result.metrics) == {"accuracy", "accuracy_k1", "accuracy_k5", "accuracy_k10", "accuracy_k12"}
    assert "top5" in measured(Knn(), clouds(apart=5, num_classes=6)).metrics


def test_a_tie_or_nan_is_a_miss():
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [math.nan, math.nan, math.nan]])
    assert accuracies(scores, torch.tensor([0, 1, 2])) == {"accuracy": pytest.approx(1 / 3)}
    ranks = torch.arange(7.0).repeat(7, 1)
    assert accuracies(ranks, torch.arange(7)) == {"accuracy": pytest.approx(1 / 7), "top5": pytest.approx(5 / 7)}


def test_accuracies_agree_with_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = torch.randn(200, 9, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 9
    result = accuracies(scores, labels)
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(labels.numpy(), scores.argmax(1).numpy()))
    assert result["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels.numpy(), scores.numpy(), k=5))


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_what_is_apart_is_told_apart(protocol):
    assert measured(protocol, clouds(apart=12), 0).metrics["accuracy"] > 0.97


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_labels_that_features_know_nothing_of_give_chance(protocol):
    result = measured(protocol, clouds(apart=0, num_classes=4, per_class=100), 0).metrics["accuracy"]
    assert result == pytest.approx(0.25, abs=0.08)  # 400 guesses: nearly four standard deviations


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_the_same_call_gives_the_same_score(protocol):
    split = clouds(apart=1.5)
    torch.manual_seed(1)
    first = measured(protocol, split, 3)
    torch.manual_seed(2)
    assert measured(protocol, split, 3) == first


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_dimensions_that_never_vary_do_no_harm(protocol):
    split = clouds(apart=12)
    train, test = (torch.cat([x, torch.full_like(x, 7.3)], 1) for x in (split.train, split.test))
    assert measured(protocol, replace(split, train=train, test=test)).metrics["accuracy"] > 0.95


def test_one_lars_step_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([2.0]))
    optimizer = LARS([weight, bias], lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    for _ in range(2):
        weight.grad, bias.grad = torch.tensor([[0.3, -0.4]]), torch.tensor([1.0])
        optimizer.step()
    w, v = np.array([3.0, 4.0]), np.zeros(2)
    for _ in range(2):
        update = np.array([0.3, -0.4]) + 0.1 * w
        v = 0.9 * v + update * 0.01 * np.linalg.norm(w) / np.linalg.norm(update)
        w = w - 0.5 * v
    np.testing.assert_allclose(weight.detach().numpy()[0], w, rtol=1e-6)
    assert bias.item() == pytest.approx(2 - 0.5 * 1 - 0.5 * 1.9)  # no trust ratio and no decay


def test_lars_moves_a_weight_of_zeros():
    weight = nn.Parameter(torch.zeros(1, 2))
    weight.grad = torch.ones(1, 2)
    LARS([weight], lr=0.5).step()
    assert weight.tolist() == [[-0.5, -0.5]]


def test_the_card_and_the_settings_say_what_a_small_set_changes():
    small = measured(Linear(), clouds(apart=3))
    assert (small.settings["epochs"], small.settings["batch_size"], small.settings["lr"]) == (270, 120, 6.4)
    assert "raised from 90 to 270. A batch is the whole set" in small.card
    full = measured(Linear(), clouds(apart=3, num_classes=2, per_class=3 * 8192, dim=2))
    assert (full.settings["epochs"], full.settings["batch_size"], full.settings["lr"]) == (90, 16384, 6.4)
    assert "raised" not in full.card


def test_the_folded_probe_is_batchnorm_then_linear():
    x, labels = torch.randn(300, 6) * 3 + 2, torch.arange(300) % 4
    probe = _Probe(6, 4, 2, torch.Generator().manual_seed(0), torch.device("cpu"))
    norm, head = nn.BatchNorm1d(6, affine=False, eps=1e-6), nn.Linear(6, 4)
    head.load_state_dict({"weight": probe.weights[1].detach(), "bias": probe.biases[1].detach()})
    ours, theirs = probe(x)[1], head(norm(x))
    torch.testing.assert_close(ours, theirs)
    F.cross_entropy(ours, labels).backward()
    F.cross_entropy(theirs, labels).backward()
    torch.testing.assert_close(probe.weights[1].grad, head.weight.grad)
    torch.testing.assert_close(probe.biases[1].grad, head.bias.grad)
    torch.testing.assert_close(probe.logits(x, probe.mean, probe.var)[1], head(norm.eval()(x)))


def test_heads_of_a_sweep_learn_as_each_would_alone():
    split = clouds(apart=1)
    lrs = (1e-4, 1e-3, 1e-2)  # at higher ones the rounding of the first steps grows
    together = _train(_Cached(split, 0), lrs)
    for k, lr in enumerate(lrs):
        alone = _train(_Cached(split, 0), (lr,))
        torch.testing.assert_close(together.weights[k], alone.weights[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(together.weights[0], together.weights[2])


def test_a_sweep_uses_the_rate_that_was_best_on_held_out_training_images():
    split = clouds(apart=3, seed=5)
    swept = measured(Linear((1e-6, 0.1)), split)
    assert swept.settings["lr"] == 6.4
    assert swept.settings["lrs_tried"]["6.4"] > swept.settings["lrs_tried"]["6.4e-05"]
    assert swept.metrics == measured(Linear(), split).metrics
    assert "chosen among 2 on a tenth" in swept.card
    with pytest.raises(ValueError, match="numbers above 0"):
        measured(Linear((0.1, 0.0)), split)


def test_logistic_regression_agrees_with_sklearn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    split = clouds(apart=1.5)
    penalty = 1e-2
    theirs = linear_model.LogisticRegression(C=1 / (penalty * len(split.train)), tol=1e-8, max_iter=1000)
    theirs.fit(split.train.numpy(), split.train_labels.numpy())
    weight, bias = logistic_regression(split.train, split.train_labels, 3, penalty)
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=2e-3)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


@pytest.mark.parametrize("penalty", [1e-2, 1e-3])
def test_logistic_regression_ends_where_it_did_in_fewer_steps_when_it_knows_the_covariance(penalty, monkeypatch):
    split = clouds(apart=1, per_class=60)
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    long = (split.train * torch.logspace(-1, 1, 8)) @ mix
    features = torch.cat([long, long[:, :1] + long[:, 1:2]], 1)  # the last is a sum of others
    features = (features - features.mean(0)) / features.std(0)
    losses, calls = F.cross_entropy, []
    monkeypatch.setattr(linear_lbfgs.F, "cross_entropy", lambda *given: calls.append(1) or losses(*given))

    def solved(covariance):
        calls.clear()
        weight, bias = logistic_regression(features, split.train_labels, 3, penalty, covariance=covariance)
        loss = losses(F.linear(features, weight, bias), split.train_labels) + penalty / 2 * weight.square().sum()
        return loss.item(), F.linear(features, weight, bias), len(calls)

    (plain, scores, many), (loss, others, few) = solved(None), solved(_covariance(features))
    assert loss == pytest.approx(plain, abs=2e-5)
    torch.testing.assert_close(others, scores, atol=0.05, rtol=0.02)
    assert few < 0.7 * many
    assert _covariance(features[:8]) is None


@pytest.mark.parametrize(("protocol", "what"), [(Knn(), "neighbours"), (LinearLBFGS(), "linear-lbfgs")])
def test_probes_say_how_far_they_are(protocol, what):
    told, split = [], clouds(apart=2)
    protocol.run(None, split, Context(subject="pixels", progress=lambda *p: told.append(p)))
    assert {name for name, *_ in told} == {f"{what} of pixels"}
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert told[-1][1] == told[-1][2] > 0


def test_lbfgs_chooses_a_penalty_that_noise_calls_for():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    x = torch.randn(200, 150, generator=rng)
    x[:, 0] += labels * 1.5
    noisy = measured(LinearLBFGS(), FeatureSplit(x[:100], labels[:100], x[100:], labels[100:], 2))
    assert noisy.settings["penalty"] >= 1e-2
    assert noisy.settings["penalty"] in map(float, noisy.settings["penalties_tried"])


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_split_holds_out_a_share_of_every_class(labels, share, seed):
    y = torch.tensor(labels)
    train, held = stratified_split(y, share, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(y)))
    for label in set(labels):
        count, out = labels.count(label), int((y[held] == label).sum())
        assert out == min(max(1, int(share * count)), count - 1)
    again = stratified_split(y, share, seed)
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], held)
