"""Student's t for the mean of a few runs and for paired differences, and Holm's correction for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_PRECISE = 1e-14


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` values, and half the width of its 95 % interval by Student's t; None for a single value."""

    mean: float
    half: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """The mean difference to the baseline over the seeds that both have, and the paired t-test's p, two-sided.

    `p` is None where no test can be made: fewer than two pairs, or pairs that all differ by the same amount.
    """

    difference: Estimate
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more values, and its 95 % interval by Student's t."""
    if len(values) < 2:
        return Estimate(fmean(values), None, len(values))
    return Estimate(fmean(values), t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values)), len(values))


def compare(values: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """The paired comparison of values by seed; None where no seed is in both."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[s] - baseline[s] for s in seeds]
    difference = estimate(differences)
    if len(seeds) < 2:
        return Comparison(difference, None)
    spread = stdev(differences)
    # Differences of accuracies on a few images are often equal by accident: that is no infinite evidence.
    if spread <= 1e-12 * max(1.0, abs(difference.mean)):
        return Comparison(difference, 1.0 if abs(difference.mean) < 1e-12 else None)
    t = difference.mean / (spread / math.sqrt(len(seeds)))
    return Comparison(difference, p_value(t, len(seeds) - 1))


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: each p as it is to be read beside all the others (Holm, 1979)."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[name]))
        corrected[name] = highest
    return corrected


def p_value(t: float, freedom: int) -> float:
    """How likely Student's t is at least this far from 0, on either side."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t that a share `level` of all values lies within, on both sides of 0."""
    low, high = 0.0, 1.0
    while p_value(high, freedom) > 1 - level:
        high *= 2
    while high - low > _PRECISE * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if p_value(middle, freedom) > 1 - level else (low, middle)
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the mirrored function converges sooner
        return 1 - _incomplete_beta(b, a, 1 - x)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    total = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away(1 + term * d, tiny)
            c = _away(1 + term / c, tiny)
            total *= c * d
        if abs(c * d - 1) < _PRECISE:
            break
    return math.exp(log) * total / a


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
