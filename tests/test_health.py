"""Spikes and divergence, by robust z-scores of the loss and the gradient norm: what is named, and what is not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest

from unveil.training.health import FEWEST, MAX_SKIPPED, MOST_SKIPPED, PATIENCE, WINDOW, Curve, Health


def falling(count: int, noise: float = 0.05, seed: int = 0) -> list[float]:
    """The loss of a healthy run: from 1.2 towards 0.4, with noise."""
    rng = np.random.default_rng(seed)
    return [(0.4 + 0.8 * math.exp(-3 * i / count)) * math.exp(noise * rng.normal()) for i in range(count)]


def follow(losses: Iterable[float], norms: Iterable[float] = repeat(1.0)) -> tuple[Health, list[dict[str, Any]]]:
    """The health after these steps, and the spikes on the way. A loss of infinity is a skipped step."""
    health = Health()
    steps = enumerate(zip(losses, norms, strict=False), start=1)
    found = [health.add(step, [loss], norm, math.isinf(loss)) for step, (loss, norm) in steps]
    return health, [spike for spike in found if spike]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.3])
def test_a_healthy_run_is_calm(noise: float):
    health, spikes = follow(falling(3000, noise), np.exp(np.random.default_rng(1).normal(0, 0.3, 3000)).tolist())
    assert spikes == []
    assert health.trouble is None
    assert health.is_calm


@pytest.mark.parametrize("of", ["loss", "gradient norm"])
def test_a_spike_is_named_with_its_step_and_score_and_is_over_when_it_is_over(of: str):
    values = falling(300)
    spiked = [*values[:200], 4 * values[200], 3 * values[201], *values[202:]]
    losses, norms = (spiked, [1.0] * 300) if of == "loss" else (values, [v * 2 for v in spiked])
    health, spikes = follow(losses, norms)
    (spike,) = spikes
    assert (spike["kind"], spike["step"], spike["of"]) == ("spike", 201, of)
    assert spike["z"] > 8
    assert health.spikes == 1
    assert health.trouble is None
    assert health.is_calm
    json.dumps(spike, allow_nan=False)


def test_the_score_is_that_of_median_and_mad_of_the_logarithm():
    curve, values = Curve(), falling(WINDOW, noise=0.2)
    for step, value in enumerate(values, start=1):
        curve.add(step, value)
    logs = np.log(values)
    sigma = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    high = 30 * values[-1]
    assert curve.add(WINDOW + 1, high) == pytest.approx((math.log(high) - np.median(logs)) / sigma, rel=1e-3)


def test_before_enough_steps_nothing_is_a_spike():
    _, spikes = follow([*falling(FEWEST - 1), 3.0, *falling(50)])
    assert spikes == []


def test_a_new_level_that_stays_is_one_spike_and_no_divergence():
    losses = [*falling(300), *(1.6 * v for v in [*falling(300)[200:], *falling(300, seed=1)[200:]])]
    health, spikes = follow(losses)
    assert len(spikes) == 1
    assert health.trouble is None
    assert health.is_calm


@pytest.mark.parametrize("first", [1.2, 0.01])
def test_a_loss_far_above_its_start_is_divergence_soon(first: float):
    health, _ = follow(chain([first], repeat(8.5e5, PATIENCE)))
    assert health.trouble
    assert (health.trouble.step, health.trouble.began, health.trouble.is_finite) == (PATIENCE + 1, 2, True)
    assert "stayed there" in health.trouble.why
    assert not health.is_calm


def test_what_was_learned_and_is_lost_for_long_is_divergence():
    health, _ = follow([*falling(300), *repeat(1.3, WINDOW)])
    assert health.trouble
    assert (health.trouble.began, health.trouble.step) == (301, 300 + WINDOW)
    assert "that of the start" in health.trouble.why
    early, _ = follow([*falling(300), *repeat(1.3, WINDOW // 2), *falling(300)[250:]])
    assert early.trouble is None


def test_losses_that_pass_zero_and_blank_images_are_no_trouble():
    """A learned uncertainty makes a loss negative; blank images make it 0."""
    rng = np.random.default_rng(0)
    health, spikes = follow(np.linspace(1.0, -1.0, 2000) + 0.02 * rng.normal(size=2000))
    assert (health.trouble, spikes) == (None, [])
    health, spikes = follow(repeat(0.0, 300), repeat(0.0))
    assert (health.trouble, spikes) == (None, [])


def test_refused_updates_in_a_row_or_half_of_the_last_hundred_are_trouble():
    health, _ = follow([*falling(50), *repeat(math.inf, MAX_SKIPPED - 1), 0.5])
    assert health.trouble is None
    assert not health.is_calm
    health, _ = follow([*falling(50), *repeat(math.inf, MAX_SKIPPED)])
    assert health.trouble
    assert (health.trouble.began, health.trouble.step, health.trouble.is_finite) == (51, 50 + MAX_SKIPPED, False)
    losses = [v if i % 3 == 0 else math.inf for i, v in enumerate(falling(200))]  # two thirds
    health, _ = follow(losses)
    assert health.trouble
    assert f"{MOST_SKIPPED} of the last" in health.trouble.why


def test_a_state_in_the_middle_goes_on_to_the_same_findings():
    losses = [*falling(150), 3.0, 3.0, *falling(150)[100:], math.inf, *falling(100), *repeat(1.3, WINDOW)]
    norms = np.exp(np.random.default_rng(1).normal(0, 0.3, len(losses))).tolist()
    whole, spikes = follow(losses, norms)
    assert whole.trouble
    assert [spike["step"] for spike in spikes] == [151, 204, 304]
    for cut in (1, 10, 25, 151, 152, 160, 201, 202, 301, 310, 399):
        health, found = follow(losses[:cut], norms)
        health = Health(json.loads(json.dumps(health.state, allow_nan=False)))
        rest: Iterator[Any] = zip(range(cut + 1, len(losses) + 1), losses[cut:], norms[cut:], strict=True)
        found += [s for step, loss, norm in rest if (s := health.add(step, [loss], norm, math.isinf(loss)))]
        assert found == spikes
        assert health.state == whole.state


def test_another_stage_has_another_level():
    health, _ = follow(falling(100))
    health.start_stage()
    for step, loss in enumerate(falling(100), start=101):
        assert health.add(step, [50 * loss], 1.0, False) is None
    assert health.is_calm
