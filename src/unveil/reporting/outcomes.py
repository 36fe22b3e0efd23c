"""What became of each test sample, as it lies beside a result, compared in pairs with what became of it elsewhere."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .run_files import check_own

STANDARD_ERRORS = 3.0  # that a difference must exceed to be significant
_MOST = 1 << 30  # bytes of all outcomes of a protocol
BETWEEN = "\t"  # the subject and the metric in the name of an array


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


def read_outcomes(run_dir: Path, protocol: str, place: str = "") -> dict[str, dict[str, Float[np.ndarray, "*draws M"]]]:
    """What became of each test sample, by subject and metric; empty where nothing was kept."""
    file = run_dir / "outcomes" / place / f"{protocol}.npz"
    outcomes: dict[str, dict[str, Float[np.ndarray, "*draws M"]]] = {}
    if file.exists():
        check_own(file)
        with zipfile.ZipFile(file) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST:
                raise ValueError(f"it unpacks to more than {_MOST >> 20} MB, which no outcomes of a run take")
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                subject, _, metric = key.partition(BETWEEN)
                outcomes.setdefault(subject, {})[metric] = arrays[key]
    return outcomes
