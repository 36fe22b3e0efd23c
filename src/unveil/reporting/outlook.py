"""How long a run would take to pass its baselines, from the accuracies that its weights had on the way."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from ..runs.console import duration
from .comparisons import Comparison, error_of, main_metrics, title_of
from .forecast import FURTHEST, LEAST_POINTS, LEAST_RANGE, Curve, fit
from .outcomes import STANDARD_ERRORS
from .run_record import Evaluation, RunRecord

_SAME = ("pool", "test_data", "train_images", "test_images", "layers", "combine", "normalize")  # of one curve


def outlook(run: RunRecord, groups: Sequence[Sequence[Comparison]]) -> str:
    """For each measure that is not above its baselines, how long training would take for that; empty for none."""
    behind = [group for group in groups if any(c.side <= 0 for c in group)]
    curves = {title: curve for title, curve in all_curves(run).items() if title in {g[0].title for g in behind}}
    if not curves or not run.steps:
        return _how_to_measure(run)
    words = [f"by {g[0].title} {how_long(run, curves[g[0].title], _target(g))}" for g in behind if g[0].title in curves]
    return f"To pass them on this machine: {'; '.join(words)}."


def all_curves(run: RunRecord) -> dict[str, Curve]:
    """Accuracies over updates, each by what was measured: those of the weights that were kept, then of the newest."""
    curves = {}
    for evaluation in run.evaluations:
        for metric in main_metrics(evaluation.metrics):
            points = [
                (float(step), other.metrics[metric], error_of(other, metric))
                for step, others in run.earlier.items()
                for other in others
                if metric in other.metrics and _is_same(evaluation, other)
            ]
            last = run.steps[-1].step if run.steps else 0
            points = [point for point in points if point[0] < last]
            points += [(last, evaluation.metrics[metric], error_of(evaluation, metric))]
            if len(points) > 1 and all(math.isfinite(error) for _, _, error in points):
                curves[title_of(evaluation.protocol, metric)] = Curve(*zip(*points, strict=True))
    return curves


def before_decay(run: RunRecord, curve: Curve) -> Curve:
    """The points at which the learning rate was at least half of its peak.

    Later ones level off with the rate, which in a longer run falls later: through all of them a law says too little.
    """
    rates = [(s.step, s.lr) for s in run.steps if math.isfinite(s.lr)]
    if not rates:
        return curve
    peak_step, peak = max(rates, key=lambda at: at[1])
    fallen = next((step for step, rate in rates if step > peak_step and rate < peak / 2), math.inf)
    points = [p for p in zip(curve.updates, curve.shares, curve.errors, strict=True) if p[0] < fallen]
    return Curve(*zip(*points, strict=True)) if points else Curve((), (), ())


def how_long(run: RunRecord, curve: Curve, share: float) -> str:
    """The time of training after which a curve is at this share, as far as the curve tells."""
    curve = before_decay(run, curve)
    law = fit(curve)
    if law is None:
        return (
            f"cannot be told from this curve: {len(curve.updates)} of its points are from before the learning rate has"
            f" halved; {LEAST_POINTS} whose updates differ by a factor of {LEAST_RANGE:g} are needed"
        )
    seconds, most = run.seconds / run.steps[-1].step, FURTHEST * curve.updates[-1]
    when = law.reaching(share)
    low, middle, high = (duration(seconds * updates) for updates in (when.low, when.middle, when.high))
    if when.low > most:
        times = most / run.steps[-1].step
        return f"more than {duration(seconds * most)}, {times:.2g} times this run, if more updates do it at all"
    if when.middle > most:
        return f"cannot be told from this curve: {low} at least"
    if when.high > most:
        return f"about {middle} ({low} to more than {duration(seconds * most)})"
    return f"about {middle} ({low} to {high})"


def _target(group: Sequence[Comparison]) -> float:
    """The share from which on a measure is above its baselines beyond the error."""
    return max(c.other + (STANDARD_ERRORS * c.difference_error if c.has_error else 0.0) for c in group)


def _is_same(one: Evaluation, other: Evaluation) -> bool:
    places = ((e.protocol, e.data, *(e.settings.get(key) for key in _SAME)) for e in (one, other))
    return next(places) == next(places)


def _how_to_measure(run: RunRecord) -> str:
    protocols = " ".join(dict.fromkeys(e.protocol for e in run.evaluations if "accuracy" in e.metrics))
    measured = (
        f"DATA --protocol {protocols}" if protocols else "LABELLED_IMAGES"
    )  # others than accuracies have no curve
    command = f"unveil evaluate {shlex.quote(str(run.path))} --data {measured} --over-training"
    return f"`{command}` tells how long this machine would take, from the weights that the run kept."
