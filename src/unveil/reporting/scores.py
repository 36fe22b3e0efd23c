"""The sections on scores: features beside their baselines, and over training. One function a section."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .charts import NUM_COLOURS, Line, line_chart
from .comparisons import SHORT, error_of, half_interval, title_of
from .forecast import FURTHEST, LEVEL, fit
from .markup import Markup, counted, figure, html_table, percent, remark, tag
from .outlook import all_curves, before_decay
from .run_record import Evaluation, RunRecord
from .sections import Runs, chart_section, section

SHOWN = 3  # measures of a protocol that are seen at once
SHARES = (  # metrics that are shares of 1
    *("accuracy", "top", "miou", "pixel_accuracy", "mean_accuracy", "mean_class_accuracy", "most_frequent_class"),
    *("delta", "box_ap", "mask_ap", "jf_", "j_", "f_"),
)
_OF_EACH = {"iou": "class", "box_ap": "class", "mask_ap": "class", "jf": "video"}  # what shares are the means of
_WORDS = {  # of metrics, which are not written as they are spoken
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75", "miou": "mIoU", "psnr": "PSNR", "rmse": "RMSE"},
    **{"jf": "J&F", "j": "J", "f": "F"},
}
_NAMES = {"iou": "IoU", "box_ap": "box AP", "mask_ap": "mask AP", "jf": "J&F"}

Results = Sequence[tuple[int, RunRecord, Evaluation]]  # of a protocol: the run's index, the run, its evaluation


def evaluations(runs: Runs) -> Markup | None:
    """The scores of frozen features: bars for the runs and their baselines, per protocol."""
    keys = list(dict.fromkeys((e.protocol, e.data) for run in runs for e in run.evaluations))
    blocks = [_protocol(runs, *key) for key in keys]
    if not blocks:
        return None
    explained = "Baselines see the same images through the same protocol: raw pixels, and the same encoder untrained."
    return section("Evaluation", *blocks, explained=explained, folds=True)


def over_training(runs: Runs) -> Markup | None:
    """Accuracies of the weights that runs kept on their way, and the power law through them as far as it is trusted."""
    by_title: dict[str, list[Line]] = {}
    for i, run in enumerate(runs):
        for title, curve in all_curves(run).items():
            lines = by_title.setdefault(title, [])
            lines.append(Line(run.name, curve.updates, [100 * share for share in curve.shares], i))
            used = before_decay(run, curve)
            if law := fit(used):
                ahead = [used.updates[-1] * FURTHEST ** (k / 20) for k in range(21)]
                for bound in ("low", "high"):
                    values = [100 * getattr(law.at(updates), bound) for updates in ahead]
                    lines.append(Line(f"{run.name}, {bound} bound of the forecast", ahead, values, i, is_dashed=True))
    charts = [line_chart(title, lines, x_label="updates", note="%") for title, lines in by_title.items()]
    explained = (
        f"Weights that the run kept, measured alike. Dashed: bounds of {LEVEL:.0%} by the power laws through the points"
        f" from before the learning rate has halved, up to {FURTHEST:g} times their updates."
    )
    return chart_section("Accuracy over training", charts, explained)


def _protocol(runs: Runs, protocol: str, data: str) -> Markup:
    key = (protocol, data)
    results = [(i, run, e) for i, run in enumerate(runs) for e in run.evaluations if (e.protocol, e.data) == key]
    metrics = list(dict.fromkeys(name for _, _, e in results for name in e.metrics))
    drawn = [
        bars(" ".join(_WORDS.get(word, word) for word in metric.split("_")), metric, results, is_named=len(runs) > 1)
        for metric in metrics
        if not metric.startswith("plus_minus")
    ]
    blocks = drawn[:SHOWN]
    if more := drawn[SHOWN:]:
        blocks.append(tag("details", tag("summary", counted(len(more), "more measure")), *more))
    blocks += [_details(what, results) for what in dict.fromkeys(w for _, _, e in results for w in e.details)]
    card = next((e.card for _, _, e in results if e.card), "")
    heading = tag("h3", title_of(protocol), tag("span", f" on {data}" if data else "", class_="aside"))
    return tag("article", heading, *blocks, remark(card) if card else None, class_="protocol")


def _details(what: str, results: Results) -> Markup:
    """What a metric is a mean of, such as the IoU of each class: a column per run."""
    names = list(dict.fromkeys(name for _, _, e in results for name in e.details.get(what, {})))
    by_name = {name: [e.details.get(what, {}).get(name, math.nan) for _, _, e in results] for name in names}
    each = _OF_EACH.get(what, "")
    rows = [[name, *(percent(v) if each else figure(v) for v in values)] for name, values in by_name.items()]
    head = [each, *(run.name for _, run, _ in results)]
    title = f"{_NAMES[what]} of each {each}" if each else what
    return tag("details", tag("summary", title), html_table(head, rows))


def bars(
    title: str, metric: str, results: Results, baselines: Sequence[str] | None = None, is_named: bool = False
) -> Markup:
    """One bar per baseline (all, or those named), shared by the runs that agree on it, then one per run; with 95 %
    intervals where known. One run alone is called by its name where it `is_named`."""
    rows: dict[str, tuple[float, float, str]] = {}
    for _, run, evaluation in results:
        for name, values in evaluation.baselines.items():
            if baselines is not None and name not in baselines:
                continue
            value = values.get(metric, math.nan)
            agreed = all(e.baselines.get(name, {}).get(metric) == value for _, _, e in results)
            half = half_interval(error_of(evaluation, metric, name))
            known_as = SHORT.get(name, name)
            rows[known_as if agreed else f"{known_as}, as {run.name}"] = (value, half, "base")
    for place, run, evaluation in results:
        name = run.name if len(results) > 1 or is_named else "trained"
        half = half_interval(error_of(evaluation, metric))
        rows[name] = (evaluation.metrics.get(metric, math.nan), half, f"s{place % NUM_COLOURS}")
    known = [v for v, _, _ in rows.values() if math.isfinite(v)]
    is_share = metric.startswith(SHARES) and all(0 <= v <= 1 for v in known)
    longest = max((abs(v) + (half if half > 0 else 0) for v, half, _ in rows.values() if math.isfinite(v)), default=1.0)
    drawn = [
        _bar(name, v, half, longest or 1.0, colour, is_share)
        for name, (v, half, colour) in rows.items()
        if math.isfinite(v)
    ]
    return tag("div", tag("p", title, class_="metric"), *drawn, class_="bars")


def _bar(name: str, value: float, half: float, longest: float, colour: str, is_share: bool) -> Markup:
    """A row: whose value it is, its bar with a whisker, the value."""

    def place(at: float) -> str:
        return f"{100 * min(max(at / longest, 0), 1):.1f}%"

    parts = [tag("i", class_=colour, style=f"width:{place(abs(value))}")]
    plus_minus = ""
    if half > 0:
        low, high = place(abs(value) - half), place(abs(value) + half)
        parts.append(tag("u", style=f"left:{low};right:calc(100% - {high})"))
        plus_minus = f" ± {100 * half:.1f}" if is_share else f" ± {figure(half, 2)}"
    text = f"{100 * value:.1f}{plus_minus} %" if is_share else f"{figure(value)}{plus_minus}"
    return tag(
        "div", tag("span", name, class_="who"), tag("span", *parts, class_="bar"), tag("span", text, class_="value")
    )
