"""What became of each test sample: kept beside a result, and compared in pairs with what became of it elsewhere."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..runs.atomic import write_bytes

STANDARD_ERRORS = 3.0  # that a difference must exceed to be significant
_BETWEEN = "\t"  # the subject and the metric in the name of an array


@dataclass(frozen=True)
class Difference:
    """A mean difference over the test samples, and its standard error."""

    mean: float
    error: float

    @property
    def errors(self) -> float:
        """How many standard errors it is from 0."""
        if self.error > 0:
            return self.mean / self.error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def is_gain(self) -> bool:
        return self.errors > STANDARD_ERRORS


def standard_error(outcomes: Float[np.ndarray, "*draws M"]) -> float:
    """The standard error of the mean of a number per test sample; where there are several draws, of theirs too.

    The samples are as good as drawn by chance, and so are the draws: the variances of the two means add up.
    """
    values = np.asarray(outcomes, np.float64)
    rows = values.reshape(-1, values.shape[-1])
    variances = [axis.var(ddof=1) / len(axis) for axis in (rows.mean(0), rows.mean(1)) if len(axis) > 1]
    return math.sqrt(sum(variances)) if variances else math.nan


def paired(outcomes: Float[np.ndarray, "*draws M"], others: Float[np.ndarray, "*rest K"]) -> Difference | None:
    """The difference over samples (and draws) that both were judged on; None where these are not the same."""
    if np.shape(outcomes) != np.shape(others):
        return None
    difference = np.asarray(outcomes, np.float64) - np.asarray(others, np.float64)
    return Difference(float(difference.mean()), standard_error(difference))


def write_outcomes(run_dir: Path, protocol: str, outcomes: Mapping[str, Mapping[str, Any]], place: str = "") -> None:
    """Write what became of each test sample, by subject and metric, to `outcomes/<place>/<protocol>.npz` of a run.

    Where there is nothing to write an older file is removed.
    """
    file = run_dir / "outcomes" / place / f"{protocol}.npz"
    arrays = {f"{subject}{_BETWEEN}{name}": v for subject, own in outcomes.items() for name, v in own.items()}
    if not arrays:
        file.unlink(missing_ok=True)
        return
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **{name: np.asarray(v, np.float32) for name, v in arrays.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content.getvalue())


def read_outcomes(run_dir: Path, protocol: str) -> dict[str, dict[str, Float[np.ndarray, "*draws M"]]]:
    """What became of each test sample, by subject and metric; empty where nothing was kept."""
    file = run_dir / "outcomes" / f"{protocol}.npz"
    outcomes: dict[str, dict[str, Float[np.ndarray, "*draws M"]]] = {}
    if file.exists():
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                subject, _, metric = key.partition(_BETWEEN)
                outcomes.setdefault(subject, {})[metric] = arrays[key]
    return outcomes
