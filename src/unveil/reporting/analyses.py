"""Attention, layers, decoders and masks in numbers: the training log and `unveil analyze`. One function per section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .charts import Line, line_chart
from .markup import Markup, brief, figure, html_table, percent, picture, remark, tag
from .pictures import scalar_colours
from .run_files import mapping, mappings, number
from .run_record import RunRecord
from .sections import Runs, by_run, chart_section, charts_of

METRICS = {  # metric of attention -> its row in a table
    "student_evenness": "normalised entropy, student (1: uniform)",
    "teacher_evenness": "normalised entropy, teacher (1: uniform)",
    "guide_evenness": "normalised entropy, map that masks follow",
    "rank_correlation": "rank correlation of teacher and student",
    "top_overlap": "overlap of their top 25 % of tokens (chance: 0.25)",
    "hidden_attention": "share of attention that masks hide",
    "hidden_most_attended": "share of the top 25 % of tokens that masks hide",
    "hidden_tokens": "share of all tokens that masks hide",
    "student_foreground": "share of student attention on foreground",
    "teacher_foreground": "share of teacher attention on foreground",
    "hidden_foreground": "share of hidden tokens on foreground",
    "foreground_area": "foreground, share of the area",
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
SAVINGS = {  # kinds of cheaper guidance, by the line of the chart that they lie on
    "an earlier layer": ("layer", "whole"),
    "on some steps": ("random", "steps", "whole"),
    "half resolution": ("half",),
    "averaged weights": ("average",),
}
_EVEN = 0.179  # the luminance from which black stands out from a ground as much as white
WIDE = 1280  # pixels of the picture of blocks


def attention_over_time(runs: Runs) -> Markup | None:
    """Normalised entropy, agreement and overlap with the masks over training."""

    def chart(title: str, note: str, *figures: str, from_zero: bool = False) -> Markup | None:
        lines = []
        for first_colour, name in enumerate(figures):
            for i, run in enumerate(runs):
                label = f"{run.name}, {SHORT[name]}" if len(runs) > 1 else SHORT[name]
                y = [s.attention.get(name, math.nan) for s in run.signals]
                lines.append(Line(label, [s.epoch for s in run.signals], y, i + len(runs) * first_colour))
        return line_chart(title, lines, note=note, from_zero=from_zero)

    charts = [
        chart(
            "Normalised entropy of attention", "1: uniform", "student_evenness", "teacher_evenness", "guide_evenness"
        ),
        chart("Agreement", "of teacher and student", "rank_correlation", "top_overlap"),
        chart("Masks and attention", "shares", "hidden_attention", "hidden_tokens", from_zero=True),
    ]
    explained = (
        "Normalised entropy: of an attention map, over that of a uniform one. Near 1, masks drawn from it are nearly"
        " random. Masks that hide no more of the attention than of the patches do not follow it."
    )
    return chart_section("Attention and masks", charts, explained, folds=True)


def attention_tables(runs: Runs) -> Markup | None:
    """The results of `unveil analyze attention` at each checkpoint, and in decoders."""
    return by_run("Attention statistics", runs, _attention_tables, "On held-out images, by checkpoint.")


def _attention_tables(run: RunRecord) -> list[Markup | None]:
    analysis = run.analyses.get("attention", {})
    points = mappings(analysis.get("checkpoints"))
    measured = {name: title for name, title in METRICS.items() if any(name in point for point in points)}
    rows = [[title, *(_statistic(name, number(p.get(name))) for p in points)] for name, title in measured.items()]
    head = ["", *(f"epoch {brief(number(point.get('epoch')))}" for point in points)]
    decoders = map(_decoder_attention, mappings(analysis.get("decoders")))
    return [_concluded(analysis), html_table(head, rows) if rows else None, _by_checkpoint(points), *decoders]


def _concluded(analysis: Mapping[str, Any]) -> Markup | None:
    """The sentences at the end of an analysis, first; none in files of older versions."""
    sentences = [str(sentence) for sentence in _list(analysis.get("conclusions"))]
    return tag("p", " ".join(sentences), class_="concluded") if sentences else None


def _by_checkpoint(points: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Curves of the attention over the checkpoints, where there are several."""
    if len(points) < 2:
        return None
    epochs = [number(point.get("epoch")) for point in points]

    def chart(title: str, note: str, *names: str) -> Markup | None:
        lines = [Line(SHORT[n], epochs, [number(p.get(n)) for p in points], i) for i, n in enumerate(names)]
        return line_chart(title, lines, note=note)

    charts = [
        chart("Normalised entropy at checkpoints", "1: uniform", "student_evenness", "teacher_evenness"),
        chart("Masks at checkpoints", "shares", "hidden_attention", "hidden_tokens"),
    ]
    return charts_of(charts) if any(charts) else None


def _statistic(name: str, value: float) -> str:
    return figure(value) if name == "rank_correlation" or name.endswith("evenness") else percent(value)


def _decoder_attention(decoder: Mapping[str, Any]) -> Markup | None:
    blocks = mappings(decoder.get("blocks"))
    if not blocks:
        return None
    keys = ("to_visible", "to_masked", "mass_on_visible")
    rows = [[f"block {k}", *(figure(number(b.get(key))) for key in keys)] for k, b in enumerate(blocks, start=1)]
    mass = figure(number(decoder.get("mass_on_visible")))
    for name, title, last in (("summed", "summed over blocks and heads", ""), ("mean", "mean per pair", mass)):
        pair = decoder.get(name)
        values = [figure(number(v)) for v in pair] if isinstance(pair, list) and len(pair) == 2 else ["–", "–"]
        rows.append([title, *values, last])
    lead = remark(
        f"Decoder {decoder.get('decoder', '')}: the attention that masked tokens pay to each visible and to each masked"
        " token. Summed, as CrossMAE reports it (1.42 and 0.39 for MAE), an even map has"
        f" {figure(number(decoder.get('even')))} for both."
    )
    return tag("div", lead, html_table(["", "to visible", "to masked", "mass on visible"], rows))


def cheaper_guidance(runs: Runs) -> Markup | None:
    """The results of `unveil analyze masks`: the cost of each kind of guidance and its overlap with full guidance."""
    explained = (
        "Full guidance: the attention of the last layer, from a whole forward pass. Each cheaper one is compared with"
        " it on the same samples, budgets and random numbers. Cost: operations of a training step, as a multiple of one"
        " with random masks. Beyond chance: 0 for random masks, 1 for those of full guidance."
    )
    return by_run("Cheaper guidance", runs, _cheaper, explained)


def _cheaper(run: RunRecord) -> list[Markup | None]:
    ways = mappings(run.analyses.get("masks", {}).get("ways"))
    if not ways:
        return []
    maps = [name for name in mapping(ways[0].get("overlap")) if name != "all"]
    maps = maps if len(maps) > 1 else []
    rows = [[str(way.get("name", "")), figure(number(way.get("cost"))), *_overlaps(way, maps)] for way in ways]
    head = ["", "cost of a step", "hidden in common", "visible in common", "Jaccard", "beyond chance"]
    lines = []
    for i, (name, kinds) in enumerate(SAVINGS.items()):
        chosen = [way for way in ways if way.get("kind") in kinds]
        gains = [number(mapping(mapping(way.get("overlap")).get("all")).get("beyond_chance")) for way in chosen]
        lines.append(Line(name, [number(way.get("cost")) for way in chosen], gains, i))
    title = "Masks in common with full guidance"
    chart = line_chart(title, lines, x_label="cost of a step", note="beyond chance", from_zero=True)
    table = html_table([*head, *(f"{name}, beyond chance" for name in maps)], rows)
    return [_concluded(run.analyses["masks"]), charts_of([chart]), table]


def _overlaps(way: Mapping[str, Any], maps: Sequence[str]) -> list[str]:
    overlap = mapping(way.get("overlap"))
    keys = [("all", key) for key in ("hidden_in_common", "visible_in_common", "jaccard", "beyond_chance")]
    keys += [(name, "beyond_chance") for name in maps]
    return [percent(number(mapping(overlap.get(name)).get(key))) for name, key in keys]


def layers(runs: Runs) -> Markup | None:
    """The results of `unveil analyze features`: the layers of two runs compared."""
    explained = (
        "Linear CKA, from 0 to 1: the similarity of the features of two layers. Distance: the mean distance, in pixels,"
        " from a patch to the patches that it attends to."
    )
    return by_run("Layers compared", runs, _all_layers, explained)


def _all_layers(run: RunRecord) -> list[Markup | None]:
    analyses = [analysis for name, analysis in run.analyses.items() if name.startswith("features-")]
    return [element for analysis in analyses for element in _layers(analysis)]


def _layers(analysis: Mapping[str, Any]) -> list[Markup | None]:
    names = [str(name) for name in _list(analysis.get("runs"))]
    matrix = [[number(v) for v in row] for row in _list(analysis.get("cka")) if isinstance(row, list)]
    if len(names) != 2 or not matrix:
        return []
    rows = [[f"layer {k}", *(shaded(value, value) for value in row)] for k, row in enumerate(matrix, start=1)]
    by_name = [(name, mappings(points)) for name, points in zip(names, _list(analysis.get("layers")), strict=False)]

    def chart(key: str, title: str, note: str) -> Markup | None:
        lines = [
            Line(name, list(range(1, len(points) + 1)), [number(point.get(key)) for point in points], i)
            for i, (name, points) in enumerate(by_name)
        ]
        return line_chart(title, lines, x_label="layer", note=note, from_zero=True)

    charts = [chart("rankme", "RankMe by layer", "dimensions in use")]
    charts += [chart("distance", "Attention distance by layer", "pixels")]
    return [
        _concluded(analysis),
        remark(f"Down {names[0]}, across {names[1]}; {brief(number(analysis.get('images')))} images."),
        html_table(["", *map(str, range(1, len(matrix[0]) + 1))], rows, class_="cka"),
        charts_of(charts),
    ]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def block_by_block(runs: Runs) -> Markup | None:
    """The results of `unveil analyze blocks`: what each decoder block adds, and which encoder maps it reads."""
    explained = (
        "A prediction is the sum of the contributions of the mask tokens and of each decoder block. Detail: the change"
        " from pixel to pixel within a contribution, 0 for a flat one and about 1 for noise."
    )
    return by_run("Decoder, block by block", runs, _decoders, explained)


def _decoders(run: RunRecord) -> list[Markup | None]:
    decoders = mappings(run.analyses.get("blocks", {}).get("decoders"))
    drawn = picture(run.path / "analysis" / "blocks.png", "reconstructions, block by block", WIDE)
    concluded = _concluded(run.analyses.get("blocks", {}))
    return [concluded, tag("div", drawn, class_="looks whole"), *map(_blocks, decoders)] if decoders else []


def _blocks(decoder: Mapping[str, Any]) -> Markup:
    rows = []
    for k, block in enumerate(mappings(decoder.get("parts"))):
        share, error, detail = (number(block.get(key)) for key in ("share", "error", "detail"))
        rows.append([f"block {k}" if k else "mask tokens", percent(share), figure(error), figure(detail)])
    tables = [html_table(["", "share of the prediction", "loss so far", "detail"], rows)]
    maps, reads = decoder.get("maps"), decoder.get("reads")
    if isinstance(maps, list) and isinstance(reads, list) and reads:
        shares = [[number(share) for share in row] for row in reads if isinstance(row, list)]
        most = max((share for row in shares for share in row), default=1.0) or 1.0
        cells = [[f"block {k}", *(shaded(s, s / most) for s in row)] for k, row in enumerate(shares, start=1)]
        words = "How much each encoder map (0: the patches themselves) weighs in what each block reads."
        tables += [remark(words), html_table(["", *map(str, maps)], cells, class_="cka")]
    return tag("div", remark(f"Decoder {decoder.get('decoder', '')}."), *tables)


def shaded(value: float, shade: float, form: str = ".2f") -> Markup:
    """A number on a ground whose colour shows its height: `shade` from 0 to 1."""
    if not math.isfinite(value):
        return tag("span", "–")
    red, green, blue = scalar_colours(np.array([shade]))[0].tolist()
    linear = (np.array([red, green, blue]) / 255) ** 2.2
    ink = "#000" if linear @ [0.2126, 0.7152, 0.0722] > _EVEN else "#fff"
    return tag("span", f"{value:{form}}", class_="cell", style=f"background:rgb({red} {green} {blue});color:{ink}")
