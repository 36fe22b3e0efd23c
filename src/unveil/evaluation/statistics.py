"""Means of a few draws, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

# 97.5 % quantiles of Student's t for 1 .. 30 degrees of freedom
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.96


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval by Student's t; two values at least."""
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
    return fmean(values), quantile * stdev(values) / len(values) ** 0.5
