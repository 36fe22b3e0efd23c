"""What became of each test sample: written beside a result, read again, compared in pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unveil.evaluation.outcomes import Difference, paired, read_outcomes, standard_error, write_outcomes
from unveil.evaluation.types import accuracies, hits


def test_the_standard_error_of_one_draw_is_that_of_the_mean_and_of_several_counts_both():
    rng = np.random.default_rng(0)
    values = rng.normal(size=500)
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / math.sqrt(500))
    draws = rng.normal(size=(1, 500)) + rng.normal(size=(4, 1))
    expected = math.sqrt(draws.mean(0).var(ddof=1) / 500 + draws.mean(1).var(ddof=1) / 4)
    assert standard_error(draws) == pytest.approx(expected)
    assert math.isnan(standard_error(np.ones(1)))


def test_a_paired_difference_is_surer_than_one_of_two_samples():
    rng = np.random.default_rng(1)
    hard = rng.uniform(size=2000)
    a, b = (hard < 0.52).astype(float), (hard < 0.50).astype(float)
    difference = paired(a, b)
    assert difference is not None
    assert difference.mean == pytest.approx(a.mean() - b.mean())
    assert difference.error < 0.5 * math.hypot(standard_error(a), standard_error(b))
    assert difference.is_gain
    assert not Difference(-difference.mean, difference.error).is_gain
    assert paired(a, b[:-1]) is None


def test_no_difference_is_no_gain_and_one_without_spread_is():
    ones = np.ones(10)
    same, sure = paired(ones, ones), paired(ones, ones - 1)
    assert same is not None
    assert sure is not None
    assert not same.is_gain
    assert sure.is_gain


def test_outcomes_are_read_as_they_were_written_and_go_with_the_next_result(tmp_path):
    outcomes = {"this run": {"accuracy": [1.0, 0.0], "accuracy_10%": [[1.0, 0.0], [0.0, 0.0]]}, "a b": {"psnr": [20.5]}}
    write_outcomes(tmp_path, "knn", outcomes)
    read = read_outcomes(tmp_path, "knn")
    assert {name: {m: v.tolist() for m, v in own.items()} for name, own in read.items()} == outcomes
    write_outcomes(tmp_path, "knn", {})
    assert read_outcomes(tmp_path, "knn") == {}


def test_hits_have_the_accuracy_for_their_mean_and_a_tie_is_a_miss():
    scores = torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [math.nan, 1.0]])
    labels = torch.tensor([0, 0, 1, 0])
    assert hits(scores, labels) == [1.0, 0.0, 1.0, 0.0]
    assert accuracies(scores, labels)["accuracy"] == 0.5
