"""The outcome of a study as files: JSON, CSV, and tables in plain text, with what is to be said beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...evaluation.statistics import Estimate, estimate
from ...reporting.intervals import interval, value_of
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
    """The tables as plain text: per setting one of the findings, one of what the runs cost; then what is to be said."""
    parts = []
    for setting in (s["name"] for s in outcome["settings"]):
        rows = [row for row in outcome["rows"] if row["setting"] == setting]
        chosen = headlines([row["metric"] for row in rows])
        told = [row for row in rows if row["metric"] in chosen]
        lines = [["metric", "arm", "seeds", "mean ± 95 %", "minus baseline", "p", "p (Holm)", "says"]]
        for metric in dict.fromkeys(row["metric"] for row in told):
            own = [row for row in told if row["metric"] == metric]
            lines += [[metric, r["arm"], str(r["count"]), *_cells(r), r["says"]] for r in own]
            others = [r for r in outcome["references"] if (r["setting"], r["metric"]) == (setting, metric)]
            lines += [[metric, f"({r['who']})", str(r["count"]), *_cells(r), r["says"]] for r in others]
        parts.append(f"{setting}: differences to {outcome['baseline']}, paired by seed\n{console.table(lines, 'l')}")
        parts.append(
            console.table([["arm", "runs", "time", "images/s", "memory"], *_costs(outcome["runs"], setting)], "l")
        )
    parts += [_learning_curves(outcome, setting["name"]) for setting in outcome["settings"]]
    if outcome["times"]:
        parts.append(_times(outcome["times"]))
    parts += [f"failed: {run['name']}: {run['error']}" for run in outcome["runs"] if run["error"]]
    return "\n\n".join(filter(None, [*parts, *outcome["remarks"]]))


def headlines(metrics: Sequence[str]) -> list[str]:
    """The metrics that stand for all: of a protocol with one accuracy just that; signals where nothing else is."""
    whole = {metric: f"{metric.partition(' ')[0]} accuracy" for metric in metrics}
    kept = [metric for metric, best in whole.items() if metric == best or best not in whole]
    return [m for m in kept if not m.startswith("signals ")] or kept


def remarks(outcome: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the table."""
    seeds = len(outcome["seeds"])
    found = []
    if seeds < 2:
        found.append("One seed each: there are no intervals, and no difference here is a finding.")
    elif seeds < 3:
        found.append("Two seeds: an interval by Student's t is then so wide that hardly any difference can show.")
    compared = [row for row in outcome["rows"] if row["difference"]]
    if seeds >= 2 and compared and not any(row["says"] in ("higher", "lower") for row in compared):
        found.append("No difference holds after Holm's correction at 0.05. That is no proof that the arms are alike.")
    if outcome["scale"] == "smoke":
        found.append("Scale smoke shows that everything runs; its figures mean nothing.")
    return found + ([outcome["note"]] if outcome["note"] else [])


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = row["difference"] and interval(row["difference"], row["metric"], sign=True)
    ps = ["" if row[p] is None else f"{row[p]:.3f}" for p in ("p", "p_holm")]
    return [interval(row, row["metric"]), difference or "", *ps]


def _costs(runs: Sequence[Mapping[str, Any]], setting: str) -> list[list[str]]:
    here = [run for run in runs if run["setting"] == setting]
    lines = []
    for arm in dict.fromkeys(run["arm"] for run in here):
        ours = [run for run in here if run["arm"] == arm]
        found: dict[str, Estimate | None] = {}
        for cost in COSTS:
            values = [run[cost] for run in ours if run[cost] is not None]
            found[cost] = estimate(values) if values else None
        units = {"seconds": "{:.0f} s", "images_per_second": "{:.0f}", "memory_mb": "{:.0f} MB"}
        told = [units[cost].format(e.mean) if e else "-" for cost, e in found.items()]
        lines.append([arm, str(sum(run["seconds"] is not None for run in ours)), *told])
    return lines


def _learning_curves(outcome: Mapping[str, Any], setting: str) -> str:
    """What was measured of weights on the way: a line per metric and arm, then the differences to the baseline."""
    rows = [row for row in outcome["along"] if row["setting"] == setting]
    epochs = sorted({row["epoch"] for row in rows})
    lines: dict[tuple[str, str], dict[float, str]] = {}
    for row in rows:
        lines.setdefault((row["metric"], row["arm"]), {})[row["epoch"]] = interval(row, row["metric"])
    for row in (row for row in rows if row["difference"]):
        key = (f"{row['metric']}, minus {outcome['baseline']}", row["arm"])
        lines.setdefault(key, {})[row["epoch"]] = interval(row["difference"], row["metric"], sign=True)
    table = [["metric", "arm", *(f"epoch {epoch:.4g}" for epoch in epochs)]]
    table += [[*key, *(found.get(epoch, "-") for epoch in epochs)] for key, found in lines.items()]
    return f"{setting}: learning curves, mean ± 95 %\n{console.table(table, 'l')}" if rows else ""


def _times(times: Sequence[Mapping[str, Any]]) -> str:
    metric, target = times[0]["metric"], times[0]["target"]
    rows = [["arm", "training", "epochs"]]
    for time in times:
        most = "at most " if time["at_most"] else ""
        known = time["seconds"] is not None
        rows.append(
            [time["arm"], f"{most}{time['seconds']:.0f} s" if known else "not reached",
             f"{most}{time['epochs']:.1f}" if known else "-"]
        )  # fmt: skip
    head = f"until {metric} is {value_of(target, metric)}, which every arm reaches; from means, interpolated linearly"
    return f"{head}\n{console.table(rows, 'l')}"
