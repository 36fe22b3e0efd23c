"""Runs beside one another: a table of status, scores with intervals and the options that differ, and what compares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from ..runs.console import duration
from .charts import NUM_COLOURS
from .comparable import FACTS, data_differ, listed, losses_differ
from .comparisons import error_of, half_interval, main_metrics, title_of
from .markup import Markup, brief, figure, html_table, percent, tag
from .run_record import Evaluation
from .sections import Runs, section, shown

WIDE = 4  # runs up to which each is a column; of more each is a row
Key = tuple[str, str, str, str, str]  # of an evaluation: protocol, metric, data, test data, test images
Measure = tuple[str, list[float], list[float], Callable[..., float] | None, Callable[[float], str]]


def comparison(runs: Runs) -> Markup | None:
    """A table of several runs, the best value of each measure in bold where the runs compare."""
    if len(runs) < 2:
        return None
    having = Counter(str(k) for run in runs for k in run.mapping("options"))  # what one alone has compares with nothing
    options = sorted(option for option, count in having.items() if count > 1 and option not in ("size", "epochs"))
    differing = [option for option in options if len({run.text("options", option) for run in runs}) > 1]
    words = [(name, [run.text(*keys) for run in runs]) for name, keys in FACTS.items()]
    words = [(name, values) for name, values in words if name in _ALWAYS or len(set(values)) > 1]
    words = [(n, [f"{int(v):,}" if n == "images" and v.isdecimal() else v for v in values]) for n, values in words]
    words += [(d, [shown(run.fact("options", d)) for run in runs]) for d in differing]
    columns: list[tuple[str, list[object]]] = [(name, [v or "–" for v in own]) for name, own in words if any(own)]
    why_losses, why_features = losses_differ(runs), data_differ(runs)
    nothing = [math.nan] * len(runs)
    less, more = None if why_losses else min, None if why_features else max
    measures: list[Measure] = [
        ("epochs", [run.epochs_done for run in runs], nothing, None, brief),
        ("time", [run.seconds for run in runs], nothing, None, duration),
        ("images/s", [run.images_per_second for run in runs], nothing, more, figure),
        ("final loss", [run.final_loss for run in runs], nothing, less, figure),
        ("held-out loss", [run.last_signals.heldout_loss for run in runs], nothing, less, figure),
        ("RankMe", [run.last_signals.rankme for run in runs], nothing, more, figure),
        *_scores(runs),
    ]
    columns += [
        (name, _best_bold(values, halves, best, as_text))
        for name, values, halves, best, as_text in measures
        if any(map(math.isfinite, values))
    ]
    spots = [tag("span", tag("i", class_=f"spot s{i % NUM_COLOURS}"), r.name) for i, r in enumerate(runs)]
    if len(runs) <= WIDE:
        table = html_table(["", *spots], [[name, *values] for name, values in columns], class_="compare")
    else:
        rows = [[spot, *(values[i] for _, values in columns)] for i, spot in enumerate(spots)]
        table = html_table(["run", *(name for name, _ in columns)], rows, class_="compare words")
    explained = "The best value of a measure is bold. ± is half of a 95 % interval. " + _said(why_losses, why_features)
    is_long = len(runs) > WIDE
    return section("Side by side", table, explained=explained, folds=True, is_open=is_long)


_ALWAYS = ("recipe", "size", "status")


def _said(why_losses: Sequence[str], why_features: Sequence[str]) -> str:
    """What compares and why other things do not, in sentences."""
    if not why_losses:
        return "All runs share data, target and share hidden, so their losses compare."
    sentence = f"The runs differ in {listed(why_losses)}, so their losses do not compare, and none is bold."
    if why_features:
        sentence += (
            " Nor do speed and RankMe. Accuracies stand in one column only where protocol and test images agree."
        )
    return sentence


def _scores(runs: Runs) -> list[Measure]:
    """A measure for each protocol on the same test images: accuracies with half of their intervals."""
    by_key: dict[Key, dict[int, tuple[float, float]]] = {}
    for i, run in enumerate(runs):
        for e in run.evaluations:
            for metric in main_metrics(e.metrics):
                half = half_interval(error_of(e, metric))
                by_key.setdefault(_key(e, metric), {})[i] = (e.metrics[metric], half)
    titles = Counter(title_of(*key[:2]) for key in by_key)
    measures: list[Measure] = []
    for key, own in sorted(by_key.items()):
        title = title_of(*key[:2])
        beside = " · ".join(filter(None, key[2:])) if titles[title] > 1 else ""
        pairs = [own.get(i, (math.nan, math.nan)) for i in range(len(runs))]
        name = f"{title} ({beside})" if beside else title
        measures.append((name, [v for v, _ in pairs], [half for _, half in pairs], max, percent))
    return measures


def _key(evaluation: Evaluation, metric: str) -> Key:
    settings = evaluation.settings
    images = settings.get("test_images")
    counted = f"{images} test images" if images is not None else ""
    return evaluation.protocol, metric, evaluation.data, str(settings.get("test_data") or ""), counted


def _best_bold(
    values: Sequence[float],
    halves: Sequence[float],
    best: Callable[..., float] | None,
    shown: Callable[[float], str],
) -> list[object]:
    known = [v for v in values if math.isfinite(v)]
    top = best(known) if best and len(set(known)) > 1 else None
    texts = [
        f"{100 * v:.1f} ± {100 * half:.1f} %" if math.isfinite(half) and math.isfinite(v) else shown(v)
        for v, half in zip(values, halves, strict=True)
    ]
    return [tag("strong", text) if v == top else text for v, text in zip(values, texts, strict=True)]
