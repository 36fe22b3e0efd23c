"""Means with their intervals as a picture: on the page of a study, and as SVG files that stand alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runs.atomic import write_text
from .markup import Markup, figure, join, percent, tag
from .style import MARKS, PALETTE

WIDTH, ROW, RIGHT, TOP = 640, 26, 560, 8  # in pixels
LETTER, GAP, LONGEST = 7.5, 14, 40  # of the names: pixels of a letter and after them, letters of one at most
HEAD = 34  # for the title of a picture that stands alone
_SHARES = ("accuracy", "top5", "miou", "delta")
_ALONE = f"{PALETTE}{MARKS}text{{font:14px system-ui,sans-serif;fill:var(--soft)}}.title{{fill:var(--ink)}}"

Row = tuple[str, Mapping[str, Any], bool]  # a name, a mapping with `mean` and `half`, and whether it is a reference


def metric_rows(outcome: Mapping[str, Any], setting: str, metric: str) -> list[Row]:
    """What a study found of a metric: its arms, then what stands beside them."""
    asked = (setting, metric)
    own = [row for row in outcome["rows"] if (row["setting"], row["metric"]) == asked]
    beside = [row for row in outcome["references"] if (row["setting"], row["metric"]) == asked]
    return [(row["arm"], row, False) for row in own] + [(row["who"], row, True) for row in beside]


def intervals(metric: str, rows: Sequence[Row]) -> Markup:
    """Means as dots and intervals as bars, one row each; those of references are hollow of colour."""
    svg = tag("svg", *_drawn(metric, rows), viewBox=f"0 0 {WIDTH} {_height(rows)}", role="img")
    return tag("div", svg, class_="chart")


def write_intervals(outcome: Mapping[str, Any], folder: Path) -> list[Path]:
    """A picture of each headline metric in each setting, in the folder's `figures/`; returns their paths."""
    found = {
        f"{setting['name']}: {metric}": (metric, metric_rows(outcome, setting["name"], metric))
        for setting in outcome["settings"]
        for metric in outcome["headlines"]
    }
    written = []
    for title, (metric, rows) in found.items():
        if rows:
            path = folder / "figures" / f"{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}.svg"
            path.parent.mkdir(exist_ok=True)
            write_text(path, _alone(f"{title}, mean and 95 % interval over seeds", metric, rows))
            written.append(path)
    return written


def _alone(title: str, metric: str, rows: Sequence[Row]) -> str:
    height = HEAD + _height(rows)
    ground = tag("rect", width=WIDTH, height=height, fill="var(--bg)")
    head = tag("text", title, class_="title", x=16, y=23)
    marks = tag("g", *_drawn(metric, rows), transform=f"translate(0 {HEAD})")
    return join(
        [
            tag(
                "svg", tag("style", Markup(_ALONE)), ground, head, marks,
                xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", width=WIDTH, height=height,
            ),
            "\n",
        ]
    )  # fmt: skip


def _height(rows: Sequence[Row]) -> int:
    return 2 * TOP + ROW * len(rows)


def _drawn(metric: str, rows: Sequence[Row]) -> list[Markup]:
    ends = [(row["mean"] - (row["half"] or 0), row["mean"] + (row["half"] or 0)) for _, row, _ in rows]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name, _, _ in rows]
    left = 2 * GAP + LETTER * max(len(name) for name in shown)
    scale = (RIGHT - left) / (high - low or 1.0)
    said = "; ".join(f"{name} {interval(row, metric)}" for name, row, _ in rows)
    parts = [tag("title", f"{metric}: {said}")]
    for i, (name, (_, row, is_reference), (a, b)) in enumerate(zip(shown, rows, ends, strict=True)):
        y = TOP + ROW * i + ROW / 2
        at, first, last = (left + (value - low) * scale for value in (row["mean"], a, b))
        slot = "base" if is_reference else f"s{i % 7}"
        parts += [
            tag("text", name, x=f"{left - GAP:.1f}", y=f"{y + 4:.1f}", text_anchor="end"),
            tag("line", class_=f"line {slot}", x1=f"{first:.1f}", x2=f"{last:.1f}", y1=f"{y:.1f}", y2=f"{y:.1f}"),
            tag("circle", class_=f"dot {slot}", cx=f"{at:.1f}", cy=f"{y:.1f}", r=5),
            tag("text", value_of(row["mean"], metric), x=RIGHT + 12, y=f"{y + 4:.1f}"),
        ]
    return parts


def interval(row: Mapping[str, Any] | None, metric: str, sign: bool = False) -> str:
    """A mean and half of its interval in words."""
    if row is None:
        return "–"
    mean = ("+" if sign and row["mean"] >= 0 else "") + value_of(row["mean"], metric)
    return mean if row["half"] is None else f"{mean} ± {value_of(row['half'], metric)}"


def value_of(value: float, metric: str) -> str:
    """A figure of a metric, shares in per cent."""
    return percent(value) if metric.split(" ", 1)[-1].startswith(_SHARES) else figure(value)
