"""The outcome of a study: each run's metrics, read from its folder, rows with intervals and tests, and its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from ...evaluation.statistics import Comparison, compare, estimate, holm
from ...reporting.run_files import read_lines
from ...reporting.study import (
    COST_HEAD,
    TIME_HEAD,
    comparison_cells,
    cost_rows,
    curve_rows,
    metric_rows,
    time_rows,
    time_target,
)
from ...runs import console
from ...runs.atomic import write_json, write_text
from ...runs.folder import RunFolder
from ...runs.lock import status_of
from .design import ScaleName, Study
from .jobs import Job

SIGNIFICANCE = 0.05  # a corrected p below which a difference is claimed
ATTENTION = ("student_foreground", "student_evenness", "rank_correlation", "hidden_attention")  # over training
_CURVES = ("heldout_loss", "rankme", "feature_std")
COSTS = ("seconds", "images_per_second", "memory_mb")
RunMetrics = Mapping[str, Any]
Values = dict[str, dict[str, dict[int, float]]]  # metric -> arm or reference -> seed -> value
Curve = list[tuple[float, float, float]]  # a value, the seconds of training and the epochs until it was reached


def gather(
    study: Study, scale: ScaleName, jobs: Sequence[Job], folder: Path, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Everything about a study as JSON: its question, its runs, and the rows of its table."""
    runs = [read_outcome(job, folder, failed.get(job.name)) for job in jobs]
    at, base = study.scales[scale], study.baseline
    settings = [setting.name for setting in at.settings]
    measured = [name for name in dict.fromkeys(name for run in runs for name in run["curves"]) if name not in _CURVES]
    return {
        "question": study.question,
        "note": study.note,
        "scale": scale,
        "baseline": base,
        "seeds": list(at.seeds),
        "settings": [{"name": s.name, "data": s.data, "labelled": s.labelled or s.data} for s in at.settings],
        "arms": [
            {"name": arm.name, "recipe": arm.recipe, "options": {n: str(v) for n, v in arm.options.items()}}
            for arm in study.arms_at(scale)
        ],
        "runs": runs,
        "rows": [row for name in settings for row in arm_rows(runs, name, base)],
        "references": [row for name in settings for row in reference_rows(runs, name, base)],
        "along": [row for name in settings for row in learning_curves(runs, name, base, measured)],
        "times": time_to_target(runs, settings, study.time_to) if study.time_to else [],
    }


def read_outcome(job: Job, folder: Path, failed: str | None = None) -> dict[str, Any]:
    """One run's metrics, curves and costs; what has not been measured yet is left out."""
    run = RunFolder(folder / "runs" / job.name)
    metadata = run.read("run.json", {})
    lines = [*read_lines(run.path / "metrics.jsonl", [])]
    steps = [line for line in lines if line.get("kind") == "step"]
    signals = [line for line in lines if line.get("kind") == "signals"]
    metrics: dict[str, float] = {}
    references: dict[str, dict[str, float]] = {}
    curves = {name: [[s["epoch"], s[name]] for s in signals if name in s] for name in _CURVES}
    for measurement in job.evaluate:
        epoch = measurement.get("at_epoch")
        results = "eval" if epoch is None else f"eval/epoch-{epoch:g}"
        for protocol in measurement["protocol"]:
            result = run.read(f"{results}/{protocol}.json", {})
            values = _protocol_metrics(protocol, result.get("metrics", {}))
            if epoch is None:
                metrics |= values
                for name, reference in result.get("baselines", {}).items():
                    references.setdefault(name, {}).update(_protocol_metrics(protocol, reference))
            else:
                for name, value in values.items():
                    curves.setdefault(name, []).append([epoch, value])
    metrics |= read_analyses(run)
    for point in run.read("analysis/attention.json", {}).get("checkpoints", ()):
        for name in (name for name in ATTENTION if name in point):
            curves.setdefault(f"attention {name.replace('_', ' ')}", []).append([point["epoch"], point[name]])
    if signals and "rankme" in signals[-1]:
        metrics["signals rankme"] = signals[-1]["rankme"]
    return {
        **{"name": job.name, "arm": job.arm, "setting": job.setting, "seed": job.seed},
        "status": status_of(run.path, metadata) if metadata else "not begun",
        "error": failed,
        "metrics": metrics,
        "references": references,
        "seconds": metadata.get("seconds"),
        "images_per_second": median(s["images_per_second"] for s in steps) if steps else None,
        "memory_mb": max(s["memory_mb"] for s in steps) if steps else None,
        "epochs": steps[-1]["epoch"] if steps else None,
        "curves": curves,
        "seconds_at": [[s["epoch"], s["time"]] for s in steps],
    }


def read_analyses(run: RunFolder) -> dict[str, float]:
    """Results of `unveil analyze` as metrics: final attention, decoder attention and blocks, CKA of layers.

    Decoder attention from masked tokens is given summed over blocks and heads, as in CrossMAE's paper (1.42 to
    visible, 0.39 to masked), as the mean per pair, and as the share that goes to visible tokens.
    """
    metrics: dict[str, float] = {}
    attention = run.read("analysis/attention.json", {})
    for name, value in (attention.get("checkpoints") or [{}])[-1].items():
        if name not in ("step", "epoch") and isinstance(value, (int, float)):
            metrics[f"attention {name.replace('_', ' ')}"] = value
    for decoder in attention.get("decoders", ()):
        for what in ("summed", "mean"):
            for where, value in zip(("visible", "masked"), decoder.get(what, ()), strict=False):
                metrics[f"decoder {what} to {where}"] = value
        if isinstance(decoder.get("mass_on_visible"), (int, float)):
            metrics["decoder mass on visible"] = decoder["mass_on_visible"]
    for decoder in run.read("analysis/blocks.json", {}).get("decoders", ()):
        for k, block in enumerate(decoder.get("parts", ())):
            source = f"block {k}" if k else "mask tokens"
            metrics |= {f"blocks {what} of {source}": block[what] for what in ("share", "detail") if what in block}
    for file in sorted(run.path.glob("analysis/features-*.json")):
        for k, row in enumerate(run.read(f"analysis/{file.name}", {}).get("cka", ()), start=1):
            if k <= len(row):
                metrics[f"features CKA of layer {k}"] = row[k - 1]
    return metrics


def arm_rows(runs: Sequence[RunMetrics], setting: str, baseline: str) -> list[dict[str, Any]]:
    """A row per metric and arm: mean and interval, the difference to the baseline, its p, and the claim."""
    return [
        {"setting": setting, "arm": arm, "metric": metric, **row}
        for metric, values in _arm_values(runs, setting).items()
        for arm, row in _compare_all(values, values.get(baseline, {}), baseline)
    ]


def reference_rows(runs: Sequence[RunMetrics], setting: str, baseline: str) -> list[dict[str, Any]]:
    """A row per metric and reference (raw pixels, the untrained encoder, training from scratch), as those of arms.

    References are measured with the baseline's runs. They answer another question than the arms do, so their p are
    corrected among themselves.
    """
    here = [(run["seed"], run["references"]) for run in runs if run["setting"] == setting]
    references = _by_metric((name, seed, metrics) for seed, named in here for name, metrics in named.items())
    arms = _arm_values(runs, setting)
    return [
        {"setting": setting, "who": name, "metric": metric, **row}
        for metric, values in references.items()
        for name, row in _compare_all(values, arms.get(metric, {}).get(baseline, {}))
    ]


def _arm_values(runs: Sequence[RunMetrics], setting: str) -> Values:
    return _by_metric((run["arm"], run["seed"], run["metrics"]) for run in runs if run["setting"] == setting)


def _by_metric(measured: Iterable[tuple[str, int, Mapping[str, float]]]) -> Values:
    values: Values = {}
    for name, seed, metrics in measured:
        for metric, value in metrics.items():
            values.setdefault(metric, {}).setdefault(name, {})[seed] = value
    return values


def _compare_all(
    values: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float], baseline_name: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each name's mean, and its difference to the baseline with p, corrected over all names but the baseline's own."""
    compared = {name: compare(own, baseline) for name, own in values.items() if name != baseline_name}
    corrected = holm({name: c.p for name, c in compared.items() if c is not None and c.p is not None})
    for name, own in values.items():
        comparison = compared.get(name)
        row = {
            "values": {str(seed): value for seed, value in sorted(own.items())},
            **asdict(estimate(list(own.values()))),
            "difference": comparison and asdict(comparison.difference),
            "p": comparison and comparison.p,
            "p_holm": corrected.get(name),
            "says": "the baseline" if name == baseline_name else claim(comparison, corrected.get(name)),
        }
        yield name, row


def claim(comparison: Comparison | None, corrected: float | None) -> str:
    """The claim that a comparison supports, given its p after Holm's correction."""
    if comparison is None:
        return "no seed in common with the baseline: no claim"
    if comparison.difference.count < 2:
        return "one seed: no interval, no claim"
    if corrected is None:
        return "all pairs differ alike: no test, no claim"
    if corrected >= SIGNIFICANCE:
        return "no difference shown"
    return "higher" if comparison.difference.mean > 0 else "lower"


def learning_curves(
    runs: Iterable[RunMetrics], setting: str, baseline: str, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per metric, arm and epoch: the mean over seeds, and the paired difference to the baseline at that epoch."""
    values: dict[tuple[str, str, float], dict[int, float]] = {}
    for run in runs:
        for metric in metrics if run["setting"] == setting else ():
            for epoch, value in run["curves"].get(metric, ()):
                values.setdefault((metric, run["arm"], epoch), {})[run["seed"]] = value
    rows = []
    for (metric, arm, epoch), by_seed in values.items():
        compared = compare(by_seed, values.get((metric, baseline, epoch), {})) if arm != baseline else None
        row = {"setting": setting, "metric": metric, "arm": arm, "epoch": epoch}
        row |= asdict(estimate([*by_seed.values()]))
        rows.append({**row, "difference": compared and asdict(compared.difference)})
    return sorted(rows, key=lambda row: (metrics.index(row["metric"]), row["arm"], row["epoch"]))


def time_to_target(runs: Sequence[RunMetrics], settings: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Seconds of training and epochs until each arm reaches the value that all arms reach in the last setting.

    Computed from means over seeds, by linear interpolation between measurements. These are of the saved weights of the
    last setting where there are some, else of the final weights of all settings, the same run at several lengths.
    """
    paths: dict[str, Curve] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        ours = [run for run in runs if run["arm"] == arm and run["seconds"] is not None]
        last = [run for run in ours if run["setting"] == settings[-1]]
        if path := _saved_values(last, metric) or _final_values(ours, settings, metric):
            paths[arm] = path
    if not paths:
        return []
    target = min(max(value for value, _, _ in path) for path in paths.values())
    return [{"arm": arm, "metric": metric, "target": target, **_reached(path, target)} for arm, path in paths.items()]


def _saved_values(runs: Sequence[RunMetrics], metric: str) -> Curve:
    """Means over seeds at each epoch whose weights were measured."""
    points: dict[float, Curve] = {}
    for run in runs:
        for epoch, value in run["curves"].get(metric, ()) if run["seconds_at"] else ():
            epochs, times = zip(*run["seconds_at"], strict=True)
            seconds = float(np.interp(epoch, epochs, times))
            points.setdefault(epoch, []).append((value, seconds, epoch))
    return [_mean(points[epoch]) for epoch in sorted(points)]


def _final_values(runs: Sequence[RunMetrics], settings: Sequence[str], metric: str) -> Curve:
    """Means over seeds of the final values of runs of each length."""
    measured = [run for run in runs if metric in run["metrics"]]
    points = [
        [(run["metrics"][metric], run["seconds"], run["epochs"]) for run in measured if run["setting"] == setting]
        for setting in settings
    ]
    return [_mean(ends) for ends in points if ends]


def _mean(points: Curve) -> tuple[float, float, float]:
    values, seconds, epochs = (fmean(column) for column in zip(*points, strict=True))
    return values, seconds, epochs


def _reached(path: Curve, target: float) -> dict[str, Any]:
    before = None
    for value, seconds, epochs in path:
        if value >= target:
            if before is None or value == before[0]:
                return {"seconds": seconds, "epochs": epochs, "at_most": before is None}
            share = (target - before[0]) / (value - before[0])
            between = [a + share * (b - a) for a, b in zip(before[1:], (seconds, epochs), strict=True)]
            return {"seconds": between[0], "epochs": between[1], "at_most": False}
        before = (value, seconds, epochs)
    return {"seconds": None, "epochs": None, "at_most": False}


def _protocol_metrics(protocol: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """A protocol's metrics under its name, without the half widths of its own intervals."""
    return {
        f"{protocol} {name.replace('_', ' ')}": value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not name.startswith("plus_minus")
    }


def write(outcome: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write results.json, results.csv (a line per run and metric) and table.txt; returns their paths."""
    write_json(folder / "results.json", outcome)
    write_text(folder / "results.csv", as_csv(outcome))
    write_text(folder / "table.txt", as_text(outcome) + "\n")
    return [folder / name for name in ("results.json", "results.csv", "table.txt")]


def as_csv(outcome: Mapping[str, Any]) -> str:
    """A line per run and metric, with the run's costs."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("setting", "arm", "seed", "metric", "value", *COSTS, "status", "run"))
    for run in outcome["runs"]:
        costs = [run[cost] for cost in COSTS]
        for metric, value in run["metrics"].items() or [("", "")]:
            lines.writerow([run["setting"], run["arm"], run["seed"], metric, value, *costs, run["status"], run["name"]])
    return text.getvalue()


def as_text(outcome: Mapping[str, Any]) -> str:
    """The tables as plain text: per setting the comparison and the costs, learning curves, times, then remarks."""
    parts = []
    for setting in (s["name"] for s in outcome["settings"]):
        lines: list[Sequence[str]] = [
            ("metric", "arm", "seeds", "mean ± 95 %", "minus baseline", "p", "p (Holm)", "claim")
        ]
        for metric in headlines([row["metric"] for row in outcome["rows"] if row["setting"] == setting]):
            lines += [
                (metric, f"({name})" if is_reference else name, *comparison_cells(row, metric))
                for name, row, is_reference in metric_rows(outcome, setting, metric)
            ]
        parts.append(f"{setting}: differences to {outcome['baseline']}, paired by seed\n{console.table(lines, 'l')}")
        parts.append(console.table([COST_HEAD, *cost_rows(outcome, setting)], "l"))
    for setting in (s["name"] for s in outcome["settings"]):
        head, *rows = curve_rows(outcome, setting)
        if rows:
            parts.append(f"{setting}: learning curves, mean ± 95 %\n{console.table([head, *rows], 'l')}")
    if target := time_target(outcome):
        parts.append(f"{target}\n{console.table([TIME_HEAD, *time_rows(outcome)], 'l')}")
    parts += [f"failed: {run['name']}: {run['error']}" for run in outcome["runs"] if run["error"]]
    return "\n\n".join([*parts, *outcome["remarks"]])


def headlines(metrics: Sequence[str]) -> list[str]:
    """The main metrics: the accuracy of a protocol that has one, else all of its metrics; signals only if alone."""
    accuracies = {metric: f"{metric.partition(' ')[0]} accuracy" for metric in metrics}
    main = [metric for metric, accuracy in accuracies.items() if metric == accuracy or accuracy not in accuracies]
    return [m for m in main if not m.startswith("signals ")] or main


def remarks(outcome: Mapping[str, Any]) -> list[str]:
    """Caveats that a reader of the tables needs."""
    seeds, notes = len(outcome["seeds"]), []
    if seeds < 2:
        notes.append("One seed per arm: there are no intervals, and no difference is evidence.")
    elif seeds < 3:
        notes.append("Two seeds: the interval by Student's t is so wide that hardly any difference is significant.")
    compared = [row for row in outcome["rows"] if row["difference"]]
    if seeds >= 2 and compared and not any(row["says"] in ("higher", "lower") for row in compared):
        notes.append(
            "No difference is significant at 0.05 after Holm's correction, which does not show that the arms are equal."
        )
    if outcome["scale"] == "smoke":
        notes.append("Scale smoke only tests that everything runs; its figures mean nothing.")
    return notes + ([outcome["note"]] if outcome["note"] else [])
