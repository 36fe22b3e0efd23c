"""Attention and layers in numbers: what the watcher logged, and what `unveil analyze` left. One function a section."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .charts import Line, line_chart
from .markup import Markup, brief, figure, html_table, percent, tag
from .pictures import scalar_colours
from .run import RunRecord, mappings, number
from .sections import Runs, by_run, charts_of, section

FIGURES = {  # figure -> how its row is headed
    "student_evenness": "student's attention, evenness",
    "teacher_evenness": "teacher's attention, evenness",
    "guide_evenness": "blend, evenness",
    "rank_correlation": "teacher and student, rank correlation",
    "top_overlap": "teacher and student, common most attended quarter",
    "hidden_attention": "attention that masks hide",
    "hidden_most_attended": "most attended quarter that masks hide",
    "hidden_tokens": "patches that masks hide",
    "student_foreground": "student's attention on things",
    "teacher_foreground": "teacher's attention on things",
    "hidden_foreground": "masks on things",
    "foreground_area": "things' share of the area",
}
SHORT = {  # in the legend of a chart
    "student_evenness": "student",
    "teacher_evenness": "teacher",
    "guide_evenness": "blend",
    "rank_correlation": "rank correlation",
    "top_overlap": "top quarter in common",
    "hidden_attention": "attention hidden",
    "hidden_tokens": "patches hidden",
}


def attention_over_time(runs: Runs) -> Markup | None:
    """Evenness, agreement and overlap with the masks, as training went on."""

    def lines(*figures: str) -> list[Line]:
        found = []
        for name in figures:
            for i, run in enumerate(runs):
                y = [s.attention.get(name, math.nan) for s in run.signals]
                who = SHORT[name]
                label = f"{run.name}, {who}" if len(runs) > 1 else who
                found.append(Line(label, [s.epoch for s in run.signals], y, i + len(runs) * figures.index(name)))
        return found

    charts = [
        line_chart(
            "Evenness of attention", lines("student_evenness", "teacher_evenness", "guide_evenness"), note="1: even"
        ),
        line_chart("Agreement", lines("rank_correlation", "top_overlap"), note="of teacher and student"),
        line_chart("Masks and attention", lines("hidden_attention", "hidden_tokens"), note="shares", from_zero=True),
    ]
    if not any(charts):
        return None
    explained = (
        "Evenness is the entropy of a map over that of an even one: near 1, masks drawn from it are nearly random. "
        "Masks that hide no more of the attention than of the patches do not follow it."
    )
    return section("Attention and masks", charts_of(charts), explained=explained)


def attention_tables(runs: Runs) -> Markup | None:
    """What `unveil analyze attention` found at each checkpoint, and in decoders."""
    return by_run("Attention, analysed", runs, _attention_tables, "On held-out images, by checkpoint.")


def _attention_tables(run: RunRecord) -> list[Markup | None]:
    analysis = run.analyses.get("attention", {})
    points = mappings(analysis.get("checkpoints"))
    rows = [
        [title, *(_figure(name, number(point.get(name))) for point in points)]
        for name, title in FIGURES.items()
        if any(name in point for point in points)
    ]
    head = ["", *(f"epoch {brief(number(point.get('epoch')))}" for point in points)]
    return [html_table(head, rows) if rows else None, *map(_decoder, mappings(analysis.get("decoders")))]


def layers(runs: Runs) -> Markup | None:
    """What `unveil analyze features` found of the layers of two runs."""
    explained = (
        "Linear CKA, from 0 to 1: the similarity of the features of two layers. Distance: the mean distance, in pixels,"
        " from a patch to the patches that it attends to."
    )
    return by_run("Layers compared", runs, _all_layers, explained)


def _all_layers(run: RunRecord) -> list[Markup | None]:
    return [part for name, told in run.analyses.items() if name.startswith("features-") for part in _layers(told)]


def _layers(told: Mapping[str, Any]) -> list[Markup | None]:
    names = [str(name) for name in told.get("runs", ())] if isinstance(told.get("runs"), list) else []
    matrix = [[number(v) for v in row] for row in told.get("cka", ()) if isinstance(row, list)]
    if len(names) != 2 or not matrix:
        return []
    rows = [[f"layer {k}", *(shaded(value, value) for value in row)] for k, row in enumerate(matrix, start=1)]
    found = [
        tag(
            "p",
            f"Down {names[0]}, across {names[1]}; {brief(number(told.get('images')))} images.",
            class_="remark",
        ),
        html_table(["", *(str(k) for k in range(1, len(matrix[0]) + 1))], rows, class_="cka"),
    ]
    parts = told.get("layers") if isinstance(told.get("layers"), list) else []
    both = [mappings(part) for part in parts or ()]
    for key, title, note in (
        ("rankme", "RankMe by layer", "dimensions in use"),
        ("distance", "Attention distance by layer", "pixels"),
    ):
        lines = [
            Line(name, list(range(1, len(part) + 1)), [number(x.get(key)) for x in part], i)
            for i, (name, part) in enumerate(zip(names, both, strict=False))
        ]
        if chart := line_chart(title, lines, x_label="layer", note=note, from_zero=True):
            found.append(chart)
    return [*found[:2], charts_of(found[2:])]


def _decoder(told: Mapping[str, Any]) -> Markup | None:
    blocks = mappings(told.get("blocks"))
    if not blocks:
        return None
    keys = ("to_visible", "to_masked", "mass_on_visible")
    rows = [[f"block {k}", *(figure(number(b.get(key))) for key in keys)] for k, b in enumerate(blocks, start=1)]
    for name in ("summed", "mean"):
        pair = told.get(name)
        values = [figure(number(v)) for v in pair] if isinstance(pair, list) and len(pair) == 2 else ["–", "–"]
        mass = figure(number(told.get("mass_on_visible"))) if name == "mean" else ""
        rows.append(["summed over blocks and heads" if name == "summed" else "mean per pair", *values, mass])
    even = figure(number(told.get("even")))
    lead = tag(
        "p",
        f"Decoder {told.get('decoder', '')}: the attention that masked tokens pay to each visible and to each masked "
        f"token. Summed, as CrossMAE reports it (1.42 and 0.39 for MAE), an even map has {even} for both.",
        class_="remark",
    )
    return tag("div", lead, html_table(["", "to visible", "to masked", "mass on visible"], rows))


def shaded(value: float, shade: float) -> Markup:
    """A number on a ground whose colour tells how high it is: `shade` from 0 to 1."""
    if not math.isfinite(value):
        return tag("span", "–")
    red, green, blue = scalar_colours(np.array([shade]))[0].tolist()
    ink = "#000" if shade > 0.55 else "#fff"
    return tag("span", f"{value:.2f}", class_="cell", style=f"background:rgb({red} {green} {blue});color:{ink}")


def _figure(name: str, value: float) -> str:
    return figure(value) if name == "rank_correlation" or name.endswith("evenness") else percent(value)
