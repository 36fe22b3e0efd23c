"""Figures over training: what was measured of the weights that runs kept on their way, and how soon they got there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np

from ...evaluation.statistics import compare, estimate

RunFigures = Mapping[str, Any]
Curve = list[tuple[float, float, float]]  # a value, the seconds of training and the epochs until it was reached


def learning_curves(
    runs: Iterable[RunFigures], setting: str, baseline: str, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per metric, arm and epoch: the mean over seeds, and the paired difference to the baseline then."""
    here = [run for run in runs if run["setting"] == setting]
    values: dict[tuple[str, str, float], dict[int, float]] = {}
    for run in here:
        for metric in metrics:
            for epoch, value in run["curves"].get(metric, ()):
                values.setdefault((metric, run["arm"], epoch), {})[run["seed"]] = value
    rows = []
    for (metric, arm, epoch), found in values.items():
        beside = compare(found, values.get((metric, baseline, epoch), {})) if arm != baseline else None
        told = {"setting": setting, "metric": metric, "arm": arm, "epoch": epoch, **asdict(estimate([*found.values()]))}
        rows.append({**told, "difference": beside and asdict(beside.difference)})
    return sorted(rows, key=lambda row: (metrics.index(row["metric"]), row["arm"], row["epoch"]))


def time_to_target(runs: Sequence[RunFigures], settings: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """How soon each arm reaches what all of them reach in the last setting: seconds of training, and epochs.

    From means over seeds, between measurements along a straight line. These were made along the runs of the last
    setting where such were kept, else at the ends of all settings, the same run at several lengths.
    """
    paths: dict[str, Curve] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        ours = [run for run in runs if run["arm"] == arm and run["seconds"] is not None]
        path = _kept([run for run in ours if run["setting"] == settings[-1]], metric) or _ends(ours, settings, metric)
        if path:
            paths[arm] = path
    if not paths:
        return []
    target = min(max(value for value, _, _ in path) for path in paths.values())
    return [{"arm": arm, "metric": metric, "target": target, **_reached(path, target)} for arm, path in paths.items()]


def _kept(runs: Sequence[RunFigures], metric: str) -> Curve:
    """Means over seeds at each epoch whose weights were measured."""
    points: dict[float, Curve] = {}
    for run in runs:
        for epoch, value in run["curves"].get(metric, ()) if run["seconds_at"] else ():
            epochs, times = zip(*run["seconds_at"], strict=True)
            seconds = float(np.interp(epoch, epochs, times))
            points.setdefault(epoch, []).append((value, seconds, epoch))
    return [_mean(points[epoch]) for epoch in sorted(points)]


def _ends(runs: Sequence[RunFigures], settings: Sequence[str], metric: str) -> Curve:
    """Means over seeds of what runs of each length have reached in the end."""
    path = []
    for setting in settings:
        ours = [run for run in runs if run["setting"] == setting and metric in run["metrics"]]
        if ours:
            path.append(_mean([(run["metrics"][metric], run["seconds"], run["epochs"]) for run in ours]))
    return path


def _mean(points: Curve) -> tuple[float, float, float]:
    values, seconds, epochs = (fmean(column) for column in zip(*points, strict=True))
    return values, seconds, epochs


def _reached(path: Curve, target: float) -> dict[str, Any]:
    before = None
    for value, seconds, epochs in path:
        if value >= target:
            if before is None or value == before[0]:
                return {"seconds": seconds, "epochs": epochs, "at_most": before is None}
            part = (target - before[0]) / (value - before[0])
            between = [a + part * (b - a) for a, b in zip(before[1:], (seconds, epochs), strict=True)]
            return {"seconds": between[0], "epochs": between[1], "at_most": False}
        before = (value, seconds, epochs)
    return {"seconds": None, "epochs": None, "at_most": False}
