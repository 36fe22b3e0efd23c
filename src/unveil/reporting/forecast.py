"""How an accuracy goes on with training: a power law through its curve, with the interval that the curve leaves open.

1 - accuracy = floor + scale x updates ^ -exponent, as learning curves follow (Hestness et al., 2017). All exponents and
floors of a grid count by their likelihood, so that a curve which says little gives a wide interval, or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEAST_POINTS = 4  # a power law has three parameters
LEAST_RANGE = 4.0  # of updates, the last over the first
FURTHEST = 10.0  # times the last update seen, beyond which nothing is said
LEVEL = 0.9  # of an interval
_SCATTER = 0.0075  # of an accuracy from one point of a training to the next, beside the error of its test images
_EXPONENTS = np.geomspace(0.05, 2.0, 48)
_FLOORS = np.linspace(0.0, 1.0, 97)[:-1]  # as shares of the lowest error seen


@dataclass(frozen=True)
class Curve:
    """Accuracies (shares in [0, 1]) after so many updates, ascending, each with its standard error."""

    updates: Sequence[float]
    shares: Sequence[float]
    errors: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """A central value, and the bounds that hold it with a probability of LEVEL; infinite where there is none."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """Power laws through one curve: for each its floor, scale (at the last update seen), exponent and weight."""

    floor: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    exponent: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    last: float
    scatter: float

    def at(self, updates: float) -> Interval:
        """The accuracy after so many updates."""
        shares = 1 - self.floor - self.scale * (updates / self.last) ** -self.exponent
        spread = self.scatter * np.sqrt(2) * np.linspace(-2.5, 2.5, 21)  # of the point itself, in the same interval
        likely = np.exp(-0.5 * np.linspace(-2.5, 2.5, 21) ** 2)
        return _interval((shares[:, None] + spread).ravel(), (self.weight[:, None] * likely).ravel())

    def reaching(self, share: float) -> Interval:
        """The updates after which the accuracy is this share; infinite for laws that level off below it."""
        room = 1 - share - self.floor
        with np.errstate(divide="ignore", over="ignore"):
            log_ratio = (np.log(self.scale) - np.log(np.maximum(room, 1e-300))) / self.exponent
        updates = np.where(room > 0, self.last * np.exp(np.minimum(log_ratio, 700.0)), np.inf)
        return _interval(updates, self.weight)


def fit(curve: Curve) -> PowerLaw | None:
    """The power laws through a curve; None for one of too few points or too short a range."""
    x, y = np.asarray(curve.updates, np.float64), 1 - np.asarray(curve.shares, np.float64)
    if len(x) < LEAST_POINTS or x[-1] < LEAST_RANGE * x[0]:
        return None
    sigma = np.hypot(np.asarray(curve.errors, np.float64), _SCATTER)
    exponent, share = (grid.ravel() for grid in np.meshgrid(_EXPONENTS, _FLOORS, indexing="ij"))
    floor = share * y.min()
    powers = (x / x[-1]) ** -exponent[:, None]  # laws x points
    above, weights = y - floor[:, None], 1 / sigma**2
    scale = np.maximum((weights * powers * above).sum(1) / (weights * powers**2).sum(1), 1e-9)
    misfit = (weights * (above - scale[:, None] * powers) ** 2).sum(1)
    freedom = len(x) - 3
    spread = max(1.0, float(misfit.min()) / freedom)  # of a curve that scatters more than its errors say
    weight = np.exp(-(misfit - misfit.min()) / (2 * spread))
    return PowerLaw(floor, scale, exponent, weight / weight.sum(), float(x[-1]), _SCATTER * math.sqrt(spread))


def _interval(values: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Interval:
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    low, middle, high = (values[order][np.searchsorted(share, q)] for q in ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2))
    return Interval(float(low), float(middle), float(high))
