"""Student's t for the mean of a few runs and for paired differences, and Holm's correction for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


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


def jackknife(without: Sequence[float]) -> float:
    """Half of the 95 % interval of a statistic, from its values without one group of samples each (two or more).

    The delete-a-group jackknife, for groups of one size (Kott, 2001), with Student's t.
    """
    groups, mean = len(without), fmean(without)
    variance = (groups - 1) / groups * sum((value - mean) ** 2 for value in without)
    return t_quantile(groups - 1) * math.sqrt(variance)


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
    from scipy.special import stdtr  # 0.3 s, which only those wait for who measure

    return 2 * float(stdtr(freedom, -abs(t)))


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t that a share `level` of all values lies within, on both sides of 0."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
