"""How far the accuracies of an evaluation are from those of its baselines, in standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .markup import percent
from .outcomes import STANDARD_ERRORS, paired, standard_error
from .run_files import mapping, number
from .run_record import Evaluation, protocol_name

_OF_95_PERCENT = 1.96
BASELINES = {"pixels": "raw pixels", "untrained": "the untrained encoder", "from scratch": "training from scratch"}
FEATURE_BASELINES = ("pixels", "untrained")
SHORT = {
    "pixels": "raw pixels",
    "untrained": "untrained",
    "from scratch": "from scratch",
    "training mean by place": "mean by place",
}
_TITLES = {
    "linear": "linear probe",
    "linear-lbfgs": "linear probe (L-BFGS)",
    "attentive": "attentive probe",
    "finetune": "fine-tuning",
    "lowshot": "few labels",
    "segment": "segmentation",
    "vos": "video segmentation",
}
_DENSE = ("miou", "delta1", "jf_mean")  # the main measure of a dense protocol


@dataclass(frozen=True)
class Comparison:
    """A share in [0, 1] beside that of a baseline, with the errors of it and of the difference (NaN: not known)."""

    title: str
    baseline: str
    value: float
    error: float
    other: float
    difference_error: float

    @property
    def has_error(self) -> bool:
        return math.isfinite(self.difference_error)

    @property
    def side(self) -> int:
        """1 above the baseline, -1 below it, 0 where the error is larger; by sign alone where no error is known."""
        difference = self.value - self.other
        if self.has_error and abs(difference) <= STANDARD_ERRORS * self.difference_error:
            return 0
        return (difference > 0) - (difference < 0)


def in_order(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Linear probes first, then those by their names: the order in which they are to be read."""
    return sorted(evaluations, key=lambda e: (not e.protocol.startswith("linear"), e.protocol))


def comparisons(evaluation: Evaluation) -> list[Comparison]:
    """An evaluation's main measures beside each baseline that reads pixels, is untrained or trained from scratch."""
    return [
        Comparison(
            title_of(evaluation.protocol, metric),
            baseline,
            evaluation.metrics[metric],
            error_of(evaluation, metric),
            evaluation.baselines[baseline][metric],
            _difference_error(evaluation, metric, baseline),
        )
        for metric in main_metrics(evaluation.metrics)
        for baseline in BASELINES
        if math.isfinite(evaluation.baselines.get(baseline, {}).get(metric, math.nan))
    ]


def main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """The accuracy, or one for each number of labels or data set; of a dense protocol its main measure."""
    if "accuracy" in metrics:
        return ["accuracy"]
    accuracies = [name for name in metrics if name.startswith("accuracy_")]
    return accuracies or [name for name in _DENSE if name in metrics]


def title_of(protocol: str, metric: str = "accuracy") -> str:
    """What was measured, in words: `linear probe`, `few labels, 1%`, `transfer, flowers`."""
    title = _TITLES.get(protocol, protocol_name(protocol))
    return title if metric in ("accuracy", *_DENSE) else f"{title}, {metric.removeprefix('accuracy_')}"


def error_of(evaluation: Evaluation, metric: str, baseline: str | None = None) -> float:
    """The standard error of a metric of the run or of a baseline: of the test samples and of the draws of few labels.

    Where only the number of test images is known, that of an accuracy on as many, with two images of either outcome
    added (Agresti and Coull, 1998), so that 0 and 1 have an error too. NaN where that is not known either.
    """
    if (outcomes := _outcomes_of(evaluation, metric, baseline)) is not None:
        return max(standard_error(outcomes), 1 / outcomes.size if metric.startswith("accuracy") else 0.0)
    metrics = evaluation.metrics if baseline is None else evaluation.baselines.get(baseline, {})
    images, value = _test_images(evaluation.settings, metric), metrics.get(metric, math.nan)
    if not (metric.startswith("accuracy") and images > 0 and 0 <= value <= 1):
        return math.nan
    share = (value * images + 2) / (images + 4)
    half = metrics.get(metric.replace("accuracy", "plus_minus"), 0.0)
    return math.hypot(math.sqrt(share * (1 - share) / (images + 4)), half / _OF_95_PERCENT)


def _difference_error(evaluation: Evaluation, metric: str, baseline: str) -> float:
    """The standard error of the difference to a baseline: in pairs of test samples where they are kept."""
    own, other = (_outcomes_of(evaluation, metric, subject) for subject in (None, baseline))
    if own is not None and other is not None and (difference := paired(own, other)) is not None:
        return max(difference.error, 1.0 / int(own.shape[-1]))  # no surer than one test sample
    return math.hypot(error_of(evaluation, metric), error_of(evaluation, metric, baseline))


def _outcomes_of(evaluation: Evaluation, metric: str, baseline: str | None) -> np.ndarray | None:
    outcomes = evaluation.outcomes.get("this run" if baseline is None else baseline, {}).get(metric)
    return outcomes if outcomes is not None and outcomes.ndim and outcomes.shape[-1] > 1 else None


def _test_images(settings: Mapping[str, object], metric: str) -> float:
    own = mapping(mapping(settings.get("sets")).get(metric.removeprefix("accuracy_")))  # of transfer
    places = (settings, mapping(settings.get("last")), own)  # `last` is of few labels
    return next((n for place in places if (n := number(place.get("test_images"))) > 0), math.nan)


def half_interval(error: float) -> float:
    """Half of the 95 % interval of a share with this standard error."""
    return _OF_95_PERCENT * error


def relation(group: Sequence[Comparison]) -> str:
    """Where one measure is, in words: `above the untrained encoder, below raw pixels`."""
    words = {1: "above", 0: "no different from", -1: "below"}
    by_side = {side: [BASELINES[c.baseline] for c in group if c.side == side] for side in words}
    return ", ".join(f"{words[side]} {' and '.join(names)}" for side, names in by_side.items() if names)


def numbers(group: Sequence[Comparison]) -> str:
    """One measure with half of its 95 % interval and its baselines: `linear probe 35.6 ± 0.9 % (raw pixels 41.0 %)`."""
    first = group[0]
    half = f" ± {100 * half_interval(first.error):.1f}" if math.isfinite(first.error) else ""
    beside = ", ".join(f"{SHORT[c.baseline]} {percent(c.other)}" for c in group)
    return f"{first.title} {100 * first.value:.1f}{half} % ({beside})"
