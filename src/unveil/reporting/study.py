"""The page of a study: its tables and pictures, curves over training, what the runs cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from ..runs.atomic import make_folder, write_text
from ..runs.console import duration, user_path
from ..runs.run_config import current_entries
from .charts import Line, line_chart
from .markup import Markup, counted, figure, html_table, percent, tag
from .page import document
from .sections import chart_section, section
from .style import PALETTE

_CURVES = {"heldout_loss": "held-out loss", "rankme": "RankMe", "feature_std": "standard deviation of features"}
_COSTS: dict[str, Callable[[float], str]] = {
    "seconds": duration,
    "images_per_second": figure,
    "memory_mb": lambda megabytes: f"{figure(megabytes / 1024)} GB",
}
COST_HEAD = ("arm", "runs", "training", "images/s", "memory")
TIME_HEAD = ("arm", "training", "epochs")
_MOST_RUNS = 8  # lines of a chart
WIDTH, ROW, RIGHT, TOP = 640, 26, 560, 8  # in pixels
LETTER, GAP, LONGEST = 7.5, 14, 40  # of the names: pixels of a letter and after them, letters of one at most
HEAD = 34  # for the title of a picture that stands alone
_SHARES = ("accuracy", "top5", "miou", "delta", "jf_mean", "j_mean", "f_mean")
_ALONE = f"{PALETTE}text{{font:14px system-ui,sans-serif;fill:var(--soft)}}.title{{fill:var(--ink)}}"

Row = tuple[str, Mapping[str, Any], bool]  # a name, a mapping with `mean` and `half`, and whether it is a reference


def write_study_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/` from a study's `results.json`; returns the page's path.

    Raises FileNotFoundError where there is none.
    """
    folder = user_path(folder)
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
        section("Read this first", *(tag("p", remark) for remark in outcome["remarks"]))
        if outcome["remarks"]
        else None,
        *(_setting(outcome, setting["name"]) for setting in outcome["settings"]),
        _learning_curves(outcome),
        _times(outcome),
        _curves(outcome),
        _arms(outcome),
        _failures(outcome),
    )


def _setting(outcome: Mapping[str, Any], setting: str) -> Markup:
    metrics = dict.fromkeys(row["metric"] for row in outcome["rows"] if row["setting"] == setting)
    articles: dict[str, Markup] = {}
    for metric in metrics:
        rows = metric_rows(outcome, setting, metric)
        cells = [(name, *comparison_cells(row, metric)) for name, row, _ in rows]
        head = ("arm", "seeds", "mean ± 95 %", f"minus {outcome['baseline']}", "p, paired", "p, Holm", "claim")
        articles[metric] = tag("article", tag("h3", metric), intervals(metric, rows), html_table(head, cells))
    lead = (
        f"Every arm is compared with {outcome['baseline']}, paired by seed. The bar is the 95 % interval of the mean by"
        " Student's t over seeds. p: paired t-test, with Holm's correction over the arms of a metric and, separately,"
        " over the references (raw pixels, untrained, from scratch)."
    )
    others = [article for metric, article in articles.items() if metric not in outcome["headlines"]]
    return section(
        setting,
        *(article for metric, article in articles.items() if metric in outcome["headlines"]),
        tag("details", tag("summary", f"{len(others)} further figures"), *others) if others else None,
        tag("h3", "Cost of a run"),
        html_table(COST_HEAD, cost_rows(outcome, setting)),
        explained=lead,
    )


def cost_rows(outcome: Mapping[str, Any], setting: str) -> list[tuple[str, ...]]:
    """Cells of a table of costs: per arm the number of runs that ended, their mean time, speed and memory."""
    runs = [run for run in outcome["runs"] if run["setting"] == setting]
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        costs = {name: [r[name] for r in runs if r["arm"] == arm and r[name] is not None] for name in _COSTS}
        cells = (as_text(fmean(costs[name])) if costs[name] else "–" for name, as_text in _COSTS.items())
        rows.append((arm, str(len(costs["seconds"])), *cells))
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
    blocks = [block for name, (head, *rows) in tables if rows for block in (tag("h3", name), html_table(head, rows))]
    return section("Learning curves", *blocks, explained="Mean over seeds ± 95 %.") if blocks else None


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
    lead = (
        f"Seed {outcome['seeds'][0]}, on held-out images. Losses are comparable only between arms that predict the same"
        " patches."
    )
    lead += f" The first {_MOST_RUNS} arms." if len(outcome["arms"]) > _MOST_RUNS else ""
    return chart_section("Over training", charts, lead)


def _arms(outcome: Mapping[str, Any]) -> Markup:
    rows = [
        (
            arm["name"],
            arm["recipe"],
            ", ".join(f"{name} {value}" for name, value in current_entries(arm)["options"].items()),
        )
        for arm in outcome["arms"]
    ]
    return section("Arms", html_table(("arm", "recipe", "options"), rows, class_="words"))


def _failures(outcome: Mapping[str, Any]) -> Markup | None:
    failed = [(run["name"], run["error"]) for run in outcome["runs"] if run["error"]]
    return section("Failed", html_table(("run", "why"), failed, class_="words")) if failed else None


def comparison_cells(row: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """An arm's cells: seeds, mean with interval, difference to the baseline, p, corrected p, and the claim."""
    difference = interval(row["difference"], metric, sign=True)
    return str(row["count"]), interval(row, metric), difference, _p(row["p"]), _p(row["p_holm"]), row["says"]


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def metric_rows(outcome: Mapping[str, Any], setting: str, metric: str) -> list[Row]:
    """The rows of a metric: the arms of a study, then its references."""

    def chosen(name: str) -> list[Mapping[str, Any]]:
        return [row for row in outcome[name] if (row["setting"], row["metric"]) == (setting, metric)]

    arms = [(row["arm"], row, False) for row in chosen("rows")]
    return arms + [(row["who"], row, True) for row in chosen("references")]


def intervals(metric: str, rows: Sequence[Row]) -> Markup:
    """Means as dots and intervals as bars, one row each; those of references are hollow of colour."""
    view = f"0 0 {WIDTH} {2 * TOP + ROW * len(rows)}"
    return tag("div", tag("svg", *_drawn(metric, rows), viewBox=view, role="img"), class_="chart")


def write_intervals(outcome: Mapping[str, Any], folder: Path) -> list[Path]:
    """A picture of each headline metric in each setting, in the folder's `figures/`; returns their paths."""
    written = []
    for setting, metric in product(outcome["settings"], outcome["headlines"]):
        if rows := metric_rows(outcome, setting["name"], metric):
            title = f"{setting['name']}: {metric}"
            path = folder / "figures" / f"{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}.svg"
            make_folder(path.parent)
            write_text(path, _alone(f"{title}, mean and 95 % interval over seeds", metric, rows))
            written.append(path)
    return written


def _alone(title: str, metric: str, rows: Sequence[Row]) -> str:
    height = HEAD + 2 * TOP + ROW * len(rows)
    ground = tag("rect", width=WIDTH, height=height, fill="var(--bg)")
    head = tag("text", title, class_="title", x=16, y=23)
    marks = tag("g", *_drawn(metric, rows), transform=f"translate(0 {HEAD})")
    svg = tag(
        "svg", tag("style", Markup(_ALONE)), ground, head, marks,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", width=WIDTH, height=height,
    )  # fmt: skip
    return f"{svg}\n"


def _drawn(metric: str, rows: Sequence[Row]) -> list[Markup]:
    ends = [(row["mean"] - (row["half"] or 0), row["mean"] + (row["half"] or 0)) for _, row, _ in rows]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name, _, _ in rows]
    left = 2 * GAP + LETTER * max(len(name) for name in shown)
    scale = (RIGHT - left) / (high - low or 1.0)
    values = "; ".join(f"{name} {interval(row, metric)}" for name, row, _ in rows)
    elements = [tag("title", f"{metric}: {values}")]
    for i, (name, (_, row, is_reference), (a, b)) in enumerate(zip(shown, rows, ends, strict=True)):
        y = TOP + ROW * i + ROW / 2
        at, first, last = (left + (value - low) * scale for value in (row["mean"], a, b))
        slot = "base" if is_reference else f"s{i % 7}"
        elements += [
            tag("text", name, x=f"{left - GAP:.1f}", y=f"{y + 4:.1f}", text_anchor="end"),
            tag("line", class_=f"line {slot}", x1=f"{first:.1f}", x2=f"{last:.1f}", y1=f"{y:.1f}", y2=f"{y:.1f}"),
            tag("circle", class_=f"dot {slot}", cx=f"{at:.1f}", cy=f"{y:.1f}", r=5),
            tag("text", value_of(row["mean"], metric), x=RIGHT + 12, y=f"{y + 4:.1f}"),
        ]
    return elements


def interval(row: Mapping[str, Any] | None, metric: str, sign: bool = False) -> str:
    """A mean and half of its interval in words."""
    if row is None:
        return "–"
    mean = ("+" if sign and row["mean"] >= 0 else "") + value_of(row["mean"], metric)
    return mean if row["half"] is None else f"{mean} ± {value_of(row['half'], metric)}"


def value_of(value: float, metric: str) -> str:
    """A figure of a metric, shares in per cent."""
    return percent(value) if metric.split(" ", 1)[-1].startswith(_SHARES) else figure(value)
