"""Chance is a pure function: published bits, fair draws, and no draw that knows of another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unveil.modeling.rng import SampleRng, mix, sample_keys

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ints = st.integers(-(2**63), 2**63 - 1)


def splitmix(x: int) -> int:
    """The published finaliser in unbounded integers: the reference for our wrapping ones."""
    x &= WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def test_published_numbers():
    """The generator's known stream for the seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    states = torch.tensor([signed((1234567 + k * GOLDEN) & WORD) for k in range(1, 6)])
    assert mix(states).tolist() == [signed(x) for x in known]


@given(ints)
def test_mix_is_splitmix64(x: int):
    assert mix(torch.tensor([x])).item() == signed(splitmix(x))


@given(ints, st.integers(0, 10**6), st.lists(st.integers(0, 2**62), min_size=1, max_size=8))
def test_keys_are_a_pure_function(seed: int, epoch: int, samples: list[int]):
    seed = min(seed, 2**63 - 2)
    keys = sample_keys(seed, epoch, samples)
    assert torch.equal(keys, sample_keys(seed, epoch, torch.tensor(samples)))
    alone = [sample_keys(seed, epoch, [sample]).item() for sample in samples]
    assert keys.tolist() == alone


def test_seeds_epochs_and_samples_never_share_a_key():
    keys = torch.cat([sample_keys(s, e, range(500)) for s in range(10) for e in range(10)])
    assert keys.unique().numel() == keys.numel()


@given(st.permutations(range(6)))
def test_a_draw_does_not_know_its_neighbours(order: list[int]):
    keys = sample_keys(3, 1, range(6))
    together, other = SampleRng(keys), SampleRng(keys[order])
    for draw in (SampleRng.uniform, SampleRng.normal):
        assert torch.equal(draw(together, "mask", 5)[order], draw(other, "mask", 5))


def test_a_longer_draw_begins_as_the_shorter_one():
    rng = SampleRng(sample_keys(0, 0, range(4)))
    assert torch.equal(rng.uniform("x", 3), rng.uniform("x", 10)[:, :3])


def test_uniform_fills_its_range_evenly():
    x = SampleRng(sample_keys(0, 0, range(1000))).uniform("mask", 200)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() < 1
    assert_even(x)
    for column in x.T[:20]:  # one token, many samples
        assert_even(column)
    for row in x[:20]:  # one sample, many tokens
        assert_even(row, bins=10)
    bits = (x.double() * 2**24).long()
    shares = torch.stack([(bits >> place & 1).double().mean() for place in range(24)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / x.numel() ** 0.5, "each of the 24 bits is fair"


def assert_even(x: Tensor, bins: int = 20):
    """A chi-square test at five standard deviations."""
    counts = torch.histc(x, bins, 0, 1)
    expected = x.numel() / bins
    statistic = ((counts - expected).square() / expected).sum().item()
    assert abs(statistic - (bins - 1)) < 5 * (2 * (bins - 1)) ** 0.5 + 5


def test_normal_has_the_moments_of_the_normal():
    x = SampleRng(sample_keys(0, 0, range(2000))).normal("view", 100).double().flatten()
    n = x.numel()
    assert x.isfinite().all()
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5


def source(seed: int = 0, epoch: int = 0, first: int = 0) -> SampleRng:
    return SampleRng(sample_keys(seed, epoch, range(first, first + 500)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: source().uniform("mask", 100), lambda: source().uniform("view", 100)),
        (lambda: source().uniform("mask", 100), lambda: source(seed=1).uniform("mask", 100)),
        (lambda: source().uniform("mask", 100), lambda: source(epoch=1).uniform("mask", 100)),
        (lambda: source().uniform("mask", 100), lambda: source(first=1).uniform("mask", 100)),
        (lambda: source().uniform("mask", 101)[:, 1:], lambda: source().uniform("mask", 100)),
        (lambda: source(seed=0, epoch=1).uniform("mask", 100), lambda: source(seed=1, epoch=0).uniform("mask", 100)),
        (lambda: source().uniform("mask", 100), lambda: source().fold("mask").uniform("mask", 100)),
    ],
    ids=["purposes", "seeds", "epochs", "samples", "places", "seed is no epoch", "fold"],
)
def test_draws_are_independent(one, other):
    a, b = (x().double().flatten() - 0.5 for x in (one, other))
    correlation = (a * b).mean() * 12
    assert abs(correlation) < 5 / a.numel() ** 0.5


@given(ints, st.integers(1, 40))
def test_a_draw_is_the_published_stream(key: int, n: int):
    rng = SampleRng(torch.tensor([key]))
    root = rng.fold("mask").key.item()
    expected = [(splitmix(root + k * GOLDEN) >> 40) * 2.0**-24 for k in range(1, n + 1)]
    assert rng.uniform("mask", n)[0].tolist() == expected


@pytest.mark.slow
def test_the_compiled_draw_has_the_same_bits():
    """Also where only a part of a draw is read: the compiler then works with its last steps alone."""
    rng = SampleRng(sample_keys(0, 0, range(7)))
    compiled = torch.compile(
        lambda key: [x * 2 for x in SampleRng(key).uniform("mask", 128).split(32, 1)], fullgraph=True
    )
    assert torch.equal(torch.cat(compiled(rng.key), dim=1), rng.uniform("mask", 128) * 2)
