"""The page of a study: its tables and pictures, curves over training, what the runs cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
_MOST_RUNS = 8  # lines of a chart that an eye can follow


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
        _along(outcome),
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
        cells = [(name, row["count"], interval(row, metric), *_compared(row, metric)) for name, row, _ in rows]
        head = ("arm", "seeds", "mean ± 95 %", f"minus {outcome['baseline']}", "p, paired", "p, Holm", "says")
        parts[metric] = tag("article", tag("h3", metric), intervals(metric, rows), html_table(head, cells))
    lead = (
        f"Every arm is compared with {outcome['baseline']}, paired by seed. The bar is the 95 % interval of the mean by"
        " Student's t over seeds. p: paired t-test, with Holm's correction over the arms of a metric and, separately,"
        " over the references (raw pixels, untrained, from scratch)."
    )
    costs = _costs([run for run in outcome["runs"] if run["setting"] == setting])
    others = [part for metric, part in parts.items() if metric not in outcome["headlines"]]
    return section(
        setting,
        *(part for metric, part in parts.items() if metric in outcome["headlines"]),
        tag("details", tag("summary", f"{len(others)} further figures"), *others) if others else None,
        tag("h3", "Cost of a run"),
        costs,
        explained=lead,
    )


def _costs(runs: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        ours = [run for run in runs if run["arm"] == arm]
        seconds, speed, memory = (
            [run[name] for run in ours if run[name] is not None]
            for name in ("seconds", "images_per_second", "memory_mb")
        )
        rows.append(
            (arm, len(seconds), duration(fmean(seconds)) if seconds else "–", figure(fmean(speed)) if speed else "–",
             f"{figure(fmean(memory) / 1024)} GB" if memory else "–")
        )  # fmt: skip
    return html_table(("arm", "runs", "training", "images/s", "memory"), rows)


def _along(outcome: Mapping[str, Any]) -> Markup | None:
    """What was measured of the weights that runs kept on their way, with the difference to the baseline then."""
    parts: list[Markup] = []
    for setting, metric in dict.fromkeys((row["setting"], row["metric"]) for row in outcome["along"]):
        rows = [row for row in outcome["along"] if (row["setting"], row["metric"]) == (setting, metric)]
        cells = [
            (row["arm"], figure(row["epoch"]), row["count"], interval(row, metric),
             interval(row["difference"], metric, sign=True))
            for row in rows
        ]  # fmt: skip
        head = ("arm", "epoch", "seeds", "mean ± 95 %", f"minus {outcome['baseline']}")
        parts.append(tag("details", tag("summary", f"{setting}: {metric}"), html_table(head, cells)))
    return section("Learning curves", *parts) if parts else None


def _times(outcome: Mapping[str, Any]) -> Markup | None:
    if not outcome["times"]:
        return None
    first = outcome["times"][0]
    lead = (
        f"Training until {first['metric']} is {value_of(first['target'], first['metric'])}, which every arm reaches."
        " From means over seeds, with linear interpolation between measurements."
    )
    rows = [
        (t["arm"], "not reached", "–") if t["seconds"] is None
        else (t["arm"], ("at most " if t["at_most"] else "") + duration(t["seconds"]), figure(t["epochs"]))
        for t in outcome["times"]
    ]  # fmt: skip
    return section("Time to target", html_table(("arm", "training", "epochs"), rows), explained=lead)


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


def _compared(row: Mapping[str, Any], metric: str) -> tuple[str, str, str, str]:
    """An arm beside the baseline: the difference, both p, and what they carry."""
    return interval(row["difference"], metric, sign=True), _p(row["p"]), _p(row["p_holm"]), row["says"]


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
