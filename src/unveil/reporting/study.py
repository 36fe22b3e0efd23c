"""The page of a study: its tables and pictures, curves over training, what the runs cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ..runs.atomic import write_text
from ..runs.console import duration
from .charts import Line, line_chart
from .document import document
from .intervals import interval, intervals, metric_rows, value_of, write_intervals
from .markup import Markup, counted, figure, html_table, tag
from .sections import charts_of, section

_CURVES = {"heldout_loss": "held-out loss", "rankme": "RankMe", "feature_std": "standard deviation of features"}
COST_HEAD = ("arm", "runs", "training", "images/s", "memory")
TIME_HEAD = ("arm", "training", "epochs")
_MOST_RUNS = 8  # lines of a chart


def write_study_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/` from a study's `results.json`; returns the page's path.

    Raises FileNotFoundError where there is none.
    """
    folder = Path(folder)
    path, outcome = folder / "report.html", json.loads((folder / "results.json").read_text())
    write_intervals(outcome, folder)
    write_text(path, study_page(outcome))
    return path


def study_page(outcome: Mapping[str, Any]) -> str:
    """The page of one study as an HTML document that needs nothing but itself."""
    scale, arms, seeds = outcome["scale"], len(outcome["arms"]), counted(len(outcome["seeds"]), "seed")
    return document(
        "unveil study",
        outcome["study"],
        outcome["question"],
        f"{outcome['study']} · scale {scale} · {arms} arms · {seeds}",
        _remarks(outcome),
        *(_setting(outcome, setting["name"]) for setting in outcome["settings"]),
        _learning_curves(outcome),
        _times(outcome),
        _curves(outcome),
        _arms(outcome),
        _failures(outcome),
    )


def _remarks(outcome: Mapping[str, Any]) -> Markup | None:
    if not outcome["remarks"]:
        return None
    return section("Read this first", *(tag("p", remark) for remark in outcome["remarks"]))


def _setting(outcome: Mapping[str, Any], setting: str) -> Markup:
    metrics = dict.fromkeys(row["metric"] for row in outcome["rows"] if row["setting"] == setting)
    parts: dict[str, Markup] = {}
    for metric in metrics:
        rows = metric_rows(outcome, setting, metric)
        cells = [(name, *comparison_cells(row, metric)) for name, row, _ in rows]
        head = ("arm", "seeds", "mean ± 95 %", f"minus {outcome['baseline']}", "p, paired", "p, Holm", "claim")
        parts[metric] = tag("article", tag("h3", metric), intervals(metric, rows), html_table(head, cells))
    lead = (
        f"Every arm is compared with {outcome['baseline']}, paired by seed. The bar is the 95 % interval of the mean by"
        " Student's t over seeds. p: paired t-test, with Holm's correction over the arms of a metric and, separately,"
        " over the references (raw pixels, untrained, from scratch)."
    )
    others = [part for metric, part in parts.items() if metric not in outcome["headlines"]]
    return section(
        setting,
        *(part for metric, part in parts.items() if metric in outcome["headlines"]),
        tag("details", tag("summary", f"{len(others)} further figures"), *others) if others else None,
        tag("h3", "Cost of a run"),
        html_table(COST_HEAD, cost_rows(outcome, setting)),
        explained=lead,
    )


def cost_rows(outcome: Mapping[str, Any], setting: str) -> list[tuple[str, ...]]:
    """Cells of a table of costs: per arm the number of runs that ended, their mean time, speed and memory."""
    rows: list[tuple[str, ...]] = []
    runs = [run for run in outcome["runs"] if run["setting"] == setting]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        seconds, speed, memory = (
            [run[name] for run in runs if run["arm"] == arm and run[name] is not None]
            for name in ("seconds", "images_per_second", "memory_mb")
        )
        rows.append(
            (arm, str(len(seconds)), duration(fmean(seconds)) if seconds else "–",
             figure(fmean(speed)) if speed else "–", f"{figure(fmean(memory) / 1024)} GB" if memory else "–")
        )  # fmt: skip
    return rows


def curve_rows(outcome: Mapping[str, Any], setting: str) -> list[list[str]]:
    """A table of metrics over training, its head first: per metric and arm a cell per epoch, then the differences."""
    rows = [row for row in outcome["along"] if row["setting"] == setting]
    epochs = sorted({row["epoch"] for row in rows})
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for row in rows:
        cells.setdefault((row["metric"], row["arm"]), {})[row["epoch"]] = interval(row, row["metric"])
    for row in (row for row in rows if row["difference"]):
        key = (f"{row['metric']}, minus {outcome['baseline']}", row["arm"])
        cells.setdefault(key, {})[row["epoch"]] = interval(row["difference"], row["metric"], sign=True)
    head = ["metric", "arm", *(f"epoch {epoch:.4g}" for epoch in epochs)]
    return [head, *([*key, *(by_epoch.get(epoch, "–") for epoch in epochs)] for key, by_epoch in cells.items())]


def _learning_curves(outcome: Mapping[str, Any]) -> Markup | None:
    tables = [(s["name"], curve_rows(outcome, s["name"])) for s in outcome["settings"]]
    parts = [part for name, (head, *rows) in tables if rows for part in (tag("h3", name), html_table(head, rows))]
    return section("Learning curves", *parts, explained="Mean over seeds ± 95 %.") if parts else None


def time_rows(outcome: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Cells of a table of the time to the target: arm, training time, epochs."""
    return [
        (t["arm"], "not reached", "–") if t["seconds"] is None
        else (t["arm"], ("at most " if t["at_most"] else "") + duration(t["seconds"]), figure(t["epochs"]))
        for t in outcome["times"]
    ]  # fmt: skip


def time_target(outcome: Mapping[str, Any]) -> str:
    """What the times to the target are times to, in a sentence; empty without such times."""
    if not outcome["times"]:
        return ""
    metric, target = outcome["times"][0]["metric"], outcome["times"][0]["target"]
    return (
        f"Training until {metric} is {value_of(target, metric)}, which every arm reaches: from means over seeds, with"
        " linear interpolation between measurements."
    )


def _times(outcome: Mapping[str, Any]) -> Markup | None:
    lead = time_target(outcome)
    return section("Time to target", html_table(TIME_HEAD, time_rows(outcome)), explained=lead) if lead else None


def _curves(outcome: Mapping[str, Any]) -> Markup | None:
    """The first seed's signals over training, a chart per setting and signal."""
    charts = []
    for setting in outcome["settings"]:
        ours = [r for r in outcome["runs"] if r["setting"] == setting["name"] and r["seed"] == outcome["seeds"][0]]
        for name in dict.fromkeys(name for run in ours for name in run["curves"]):
            title = _CURVES.get(name, name)
            lines = [
                Line(run["arm"], [x for x, _ in run["curves"][name]], [y for _, y in run["curves"][name]], i)
                for i, run in enumerate(ours[:_MOST_RUNS])
                if run["curves"].get(name)
            ]
            charts.append(line_chart(f"{setting['name']}: {title}", lines))
    if not any(charts):
        return None
    lead = (
        f"Seed {outcome['seeds'][0]}, on held-out images. Losses are comparable only between arms that predict the same"
        " patches."
    )
    lead += f" The first {_MOST_RUNS} arms." if len(outcome["arms"]) > _MOST_RUNS else ""
    return section("Over training", charts_of(charts), explained=lead)


def _arms(outcome: Mapping[str, Any]) -> Markup:
    rows = [
        (arm["name"], arm["recipe"], ", ".join(f"{name} {value}" for name, value in arm["dials"].items()))
        for arm in outcome["arms"]
    ]
    return section("Arms", html_table(("arm", "recipe", "dials"), rows, class_="words"))


def _failures(outcome: Mapping[str, Any]) -> Markup | None:
    failed = [(run["name"], run["error"]) for run in outcome["runs"] if run["error"]]
    return section("Failed", html_table(("run", "why"), failed, class_="words")) if failed else None


def comparison_cells(row: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """An arm's cells: seeds, mean with interval, difference to the baseline, p, corrected p, and the claim."""
    difference = interval(row["difference"], metric, sign=True)
    return str(row["count"]), interval(row, metric), difference, _p(row["p"]), _p(row["p_holm"]), row["says"]


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
