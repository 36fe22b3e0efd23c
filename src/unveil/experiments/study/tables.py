"""The outcome of a study as files: JSON, CSV, and tables in plain text with remarks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

COSTS = ("seconds", "images_per_second", "memory_mb")


def write(outcome: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write results.json, results.csv (a line per run and metric) and table.txt; returns their paths."""
    write_json(folder / "results.json", outcome)
    write_text(folder / "results.csv", as_csv(outcome))
    write_text(folder / "table.txt", as_text(outcome) + "\n")
    return [folder / name for name in ("results.json", "results.csv", "table.txt")]


def as_csv(outcome: Mapping[str, Any]) -> str:
    """A line per run and metric, with the run's costs."""
    text = io.StringIO()
    columns = ("setting", "arm", "seed", "metric", "value", *COSTS, "status", "run")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
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
    seeds = len(outcome["seeds"])
    notes = []
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
