"""The written sections of a report: what was run, how it went, what was measured. One function per section.

A section is a function from the runs to Markup, or to None where there is nothing to show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from ..runs.console import duration
from .charts import NUM_COLOURS, Line, line_chart
from .comparable import listed, losses_differ
from .journal import Signals, Step
from .lamps import headline, lamps
from .markup import Markup, brief, count, counted, figure, html_table, percent, prose, remark, tag
from .run_files import mappings, number
from .run_record import RunRecord
from .verdict import judge

Runs = Sequence[RunRecord]
MOST_CARDS = 6  # verdicts of runs that are in sight
MOST_CHARTS = 3  # of losses, that are in sight


def section(
    title: str, *children: object, explained: object = None, folds: bool = False, is_open: bool = False
) -> Markup:
    """A titled element of the page, with a line that explains it, and an anchor made of its title.

    One that `folds` shows its title until it is opened, or is open from the start.
    """
    heading, lead = tag("h2", title), tag("p", explained, class_="lead") if explained else None
    if folds:
        inside = tag("details", tag("summary", heading), lead, *children, open=is_open)
        return tag("section", inside, class_="folds", id=anchor(title), data_title=title)
    return tag("section", heading, lead, *children, id=anchor(title), data_title=title)


def anchor(title: str) -> str:
    """The id of a section: its title in small letters, with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def run_heading(run: RunRecord, place: int, runs: Runs) -> Markup | None:
    """A run's name with its colour, where there are several runs."""
    return tag("h3", tag("i", class_=f"spot s{place % NUM_COLOURS}"), run.name) if len(runs) > 1 else None


def run_label(run: RunRecord, place: int, runs: Runs) -> Markup | None:
    """A run's name with its colour before other words, where there are several runs."""
    return (
        tag("strong", tag("i", class_=f"spot s{place % NUM_COLOURS}"), f"{run.name} ", class_="run")
        if len(runs) > 1
        else None
    )


def by_run(
    title: str,
    runs: Runs,
    content: Callable[[RunRecord], Sequence[Markup | None]],
    explained: object = None,
    is_open: bool = False,
) -> Markup | None:
    """A section that folds, with the content of each run under its name; None where no run has any."""
    blocks: list[Markup | None] = []
    for place, run in enumerate(runs):
        if elements := [element for element in content(run) if element]:
            blocks += [run_heading(run, place, runs), *elements]
    return section(title, *blocks, explained=explained, folds=True, is_open=is_open) if blocks else None


def charts_of(charts: Iterable[Markup | None]) -> Markup:
    """A row of charts; those that are None are left out."""
    return tag("div", *charts, class_="charts")


def chart_section(title: str, charts: Sequence[Markup | None], explained: object, folds: bool = False) -> Markup | None:
    """A section with a row of charts; None where there is no chart."""
    return section(title, charts_of(charts), explained=explained, folds=folds) if any(charts) else None


def health(runs: Runs) -> Markup:
    """The verdict on each run: a headline, its two lamps, the results of further checks, and advice."""
    cards = []
    for place, run in enumerate(runs):
        both = lamps(run)
        top = headline(both)
        lines = [(lamp.level, lamp.name, f"{lamp.state}. {lamp.sentence}", lamp.advice) for lamp in both]
        said = " ".join(lamp.sentence for lamp in both)
        others = judge(run, [other for other in runs if other is not run])
        lines += [(v.level, v.level, v.sentence, v.advice) for v in others if v.sentence not in said]
        findings = []
        for level, name, sentence, advice in lines:
            text = tag("span", prose(sentence), " ", tag("em", prose(advice)) if advice else None)
            findings.append(tag("li", tag("span", name, class_=f"level {level}"), text))
        label = run_label(run, place, runs)
        lights = [tag("i", class_=f"lamp {lamp.level}", title=str(lamp)) for lamp in both]
        sentence = tag("summary", tag("span", label, *lights, top.sentence, class_="headline"))
        details = tag("details", sentence, tag("ul", *findings), open=len(runs) == 1)
        cards.append(tag("article", details, class_=f"verdict {top.level}"))
    folded = cards[MOST_CARDS:]
    more = tag("details", tag("summary", f"{len(folded)} more runs"), *folded) if folded else None
    return tag("section", *cards[:MOST_CARDS], more, class_="health", id="verdict", aria_label="Verdict")


def key_figures(runs: Runs) -> Markup | None:
    """The main numbers of a single run."""
    if len(runs) > 1:
        return None
    run = runs[0]
    signals = run.last_signals
    tiles = [
        ("final loss", figure(run.final_loss), counted(run.epochs_done, "epoch")),
        ("held-out loss", figure(signals.heldout_loss), "on held-out images"),
        ("images/s", figure(run.images_per_second), duration(run.seconds)),
        ("RankMe", figure(signals.rankme), f"of {figure(signals.feature_dim)} dimensions"),
    ]
    for evaluation in run.evaluations:
        untrained = evaluation.accuracy("untrained")
        beside = "" if math.isnan(untrained) else f"untrained {percent(untrained)}"
        tiles.append((f"{evaluation.name} accuracy", percent(evaluation.accuracy()), beside))
    cells = [tag("div", tag("dt", a), tag("dd", b, tag("small", beside))) for a, b, beside in tiles if b != "–"]
    label = "Key figures"
    return tag("section", tag("dl", *cells, class_="tiles"), aria_label=label) if cells else None


def what_was_run(runs: Runs) -> Markup:
    """Recipe, data, model, settings and command of each run, and what was changed from the paper."""
    return section("What was run", *(_one_run(run, place, runs) for place, run in enumerate(runs)), folds=True)


def curves(runs: Runs) -> Markup | None:
    """Loss, speed, gradient norm and learning rate over epochs; several runs in one picture."""
    axis, at = _axis(runs)
    losses = sorted({name for run in runs for s in run.steps for name in s.losses})
    is_alone = len(runs) == 1

    def chart(title: str, value: Callable[[Step], float], is_noisy: bool = True, **options: Any) -> Markup | None:
        x = options.pop("x", at)
        lines = [
            Line(run.name, [x(s) for s in run.steps], [value(s) for s in run.steps], i, noisy=is_noisy)
            for i, run in enumerate(runs)
        ]
        return line_chart(title, lines, **{"x_label": axis, **options})

    def loss(name: str) -> Callable[[Step], float]:
        return lambda s: s.losses.get(name, math.nan)

    first = [
        chart("Loss", lambda s: s.loss, note="of the training images", offers_log=True),
        *(chart(f"Loss: {name}", loss(name), offers_log=True) for name in losses if len(losses) > 1),
        None if is_alone
        else chart("Loss over time", lambda s: s.loss, x=lambda s: s.time / 60, x_label="minutes", offers_log=True),
    ]  # fmt: skip
    others = [
        chart("Images per second", lambda s: s.images_per_second, from_zero=True),
        chart("Waiting for data", lambda s: s.data_wait, note="share", from_zero=True),
        chart("Gradient norm", lambda s: s.grad_norm, is_log=True),
        chart("Memory", lambda s: s.memory_mb, note="MB", from_zero=True) if is_alone else None,
        chart("Learning rate", lambda s: s.lr, is_noisy=False, from_zero=True),
        _continued(runs),
    ]  # fmt: skip
    explained = "Thin: every logged step. Thick: a moving average. Point at a chart to read its values."
    if why := losses_differ(runs):
        explained += f" The runs differ in {listed(why)}: how high their losses are does not compare."
    if not any(first) and not any(others):
        return None
    shown, more = [c for c in first if c][:MOST_CHARTS], [c for c in first if c][MOST_CHARTS:]
    more += [c for c in others if c]
    words = f"{len(more)} more: " + ("losses, " if len(more) > sum(map(bool, others)) else "")
    folded = tag("details", tag("summary", f"{words}speed, gradient, memory, learning rate"), charts_of(more))
    return section("Curves", charts_of(shown), folded if more else None, explained=explained)


def _continued(runs: Runs) -> Markup | None:
    """The schedules of runs that continue an earlier training, dashed, and the span of each that the run covers."""
    lines = []
    for i, run in enumerate(runs):
        whole, own = (_points(run.fact("schedule", key)) for key in ("whole", "run"))
        if whole[0]:
            lines += [Line(f"{run.name}: the whole schedule", *whole, i, is_dashed=True)]
            lines += [Line(f"{run.name}", *own, i)]
    return line_chart("Schedule of the learning rate", lines, x_label="epoch", note="from the first training's start")


def _points(value: object) -> tuple[list[float], list[float]]:
    pairs = [p for p in value if isinstance(p, list) and len(p) == 2] if isinstance(value, list) else []
    return [number(x) for x, _ in pairs], [number(y) for _, y in pairs]


def label_free(runs: Runs) -> Markup | None:
    """Held-out loss, RankMe and feature spread: measures of features that need no labels."""
    axis, at = _axis(runs)

    def lines(value: Callable[[Signals], float]) -> list[Line]:
        return [Line(r.name, [at(s) for s in r.signals], [value(s) for s in r.signals], i) for i, r in enumerate(runs)]

    charts = [
        line_chart("Held-out loss", lines(lambda s: s.heldout_loss), x_label=axis, note="on held-out images"),
        line_chart("RankMe", lines(lambda s: s.rankme), x_label=axis, note="dimensions that the features use"),
        line_chart(
            "Feature spread", lines(lambda s: s.feature_std), x_label=axis, note="standard deviation", from_zero=True
        ),
    ]
    explained = (
        "Measured on held-out images during training. RankMe is the effective number of dimensions of the features: "
        "the exponential of the entropy of their singular values. RankMe near 1, or a standard deviation over images "
        "near 0, means that the features have collapsed."
    )
    return chart_section("Signals that need no labels", charts, explained)


def broken_files(runs: Runs) -> Markup | None:
    """Files that could not be read."""
    most = 50

    def content(run: RunRecord) -> list[Markup | None]:
        rows = list(run.broken.items())
        more = tag("p", f"… and {len(rows) - most:,} more, in broken.json.") if len(rows) > most else None
        return [html_table(["file", "reason"], rows[:most], class_="words"), more] if rows else []

    return by_run("Broken files", runs, content, "Other samples take their places in training.")


def environment(runs: Runs) -> Markup | None:
    """Versions, machine and settings: what is needed to repeat the run, but for its options, which stand above."""

    def content(run: RunRecord) -> list[Markup | None]:
        pairs = [("unveil", run.text("unveil")), ("commit", run.text("git"))]
        pairs += [(name, _moment(run.text(name))) for name in ("started", "finished")]
        options, seen = run.mapping("options"), set[str]()
        for group in ("versions", "settings", "optim"):
            for key, value in run.mapping(group).items():
                if str(key) not in seen and (key not in options or options[key] != value):
                    pairs.append((_option_name(str(key)), shown(value)))
                    seen.add(str(key))
        return [_description_list(pairs)]

    return by_run("Environment", runs, content)


def _moment(stamp: str) -> str:
    """A time of ISO 8601 to the minute: 2026-01-31 09:30 UTC."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


OPTION_NAMES = {  # of options whose key alone is not clear
    "lr": "learning rate",
    "lr_factor": "learning rate factor",
    "peak_lr": "peak learning rate",
    "betas": "Adam betas",
    "clip": "gradient clipping",
    "compile": "torch.compile",
    "signals_every": "validation every (epochs)",
    "val_every": "validation every (epochs)",
    "keep_every": "weights saved every (epochs)",
    "save_every": "weights saved every (epochs)",
    "save_minutes": "checkpoint every (minutes)",
}


def _option_name(key: str) -> str:
    return OPTION_NAMES.get(key, key.replace("_", " "))


def _one_run(run: RunRecord, place: int, runs: Runs) -> Markup:
    size, data = run.fact("data", "image_size"), run.number("data", "count")
    size = " x ".join(map(str, size)) if isinstance(size, list) else size
    parameters = {name: run.number("model", "parameters", name) for name in ("encoder", "decoder")}
    model = [f"{count(n)} {name}" for name, n in parameters.items() if math.isfinite(n)]
    numbers = {"in all": "num_tokens", "visible": "num_visible", "predicted": "num_predicted"}
    tokens = [f"{n} {word}" for word, key in numbers.items() if (n := run.text("model", key))]
    held_out = run.number("data", "held_out")
    images = f"{data:,.0f}" + (f", {held_out:,.0f} held out" if held_out > 0 else "") if math.isfinite(data) else ""
    details = {
        "recipe": run.text("recipe"),
        "data": run.text("data", "address"),
        "images": images,
        "image size": f"{size}, {run.text('data', 'channels') or '?'} channels" if size else "",
        "parameters": ", ".join(model),
        "training": _steps(run),
        "tokens": ", ".join(tokens),
        "epochs": _epochs(run),
        "time": duration(run.seconds) if math.isfinite(run.seconds) else "",
        "device": ", ".join(filter(None, (run.text("settings", name) for name in ("device", "precision")))),
        "seed": run.text("seed"),
        "status": run.text("status"),
    }
    command = run.text("command")
    copyable = tag("div", tag("pre", tag("code", command)), tag("button", "copy", type="button"), class_="command")
    remarks = remark(" ".join(run.remarks)) if run.remarks else None
    content = (_description_list(details.items()), copyable if command else None, _changes(run), _options(run), remarks)
    return tag("article", run_heading(run, place, runs), *content)


def _epochs(run: RunRecord) -> str:
    """The epochs trained, and the whole number of them where training has not come to its end."""
    done, planned = run.epochs_done, run.number("options", "epochs")
    if not run.steps:
        return ""
    return f"{brief(done)} of {brief(planned)}" if done < 0.995 * planned else brief(done)


def _steps(run: RunRecord) -> str:
    """The parameters that a step of each stage trains, those of teachers, and its operations per image."""
    stages = mappings(run.fact("model", "stages"))
    lines = []
    for stage in stages:
        trained, guides, flops = (number(stage.get(key)) for key in ("trained", "guides", "flops"))
        facts = [f"{count(trained)} parameters trained"] if math.isfinite(trained) else []
        facts += [f"{count(guides)} of teachers"] if guides > 0 else []
        facts += [f"{flops / 1e9:.3g} GFLOPs per image"] if math.isfinite(flops) else []
        which = f"{counted(number(stage.get('epochs')), 'epoch')}: " if len(stages) > 1 else ""
        lines.append(which + ", ".join(facts))
    return "; ".join(lines)


def _changes(run: RunRecord) -> Markup | None:
    changes = run.fact("changes")
    if not isinstance(changes, list):
        return None
    if not changes:
        return tag("p", "All options are the paper's.")
    rows = [[shown(change.get(key)) for key in ("option", "paper", "used", "why")] for change in mappings(changes)]
    summary = f"{counted(len(rows), 'option')} changed from the paper to fit this data and machine"
    return tag("details", tag("summary", summary),
               html_table(["option", "paper", "here", "reason"], rows, class_="words"), open=True)  # fmt: skip


def _options(run: RunRecord) -> Markup | None:
    options = _description_list((str(k), shown(v)) for k, v in run.mapping("options").items())
    return tag("details", tag("summary", "All options"), options) if options else None


def shown(value: object) -> str:
    """A value of run.json as text: short numbers, lists with spaces, a dash for null."""
    if isinstance(value, float):
        return brief(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(shown(v) for v in value) if isinstance(value, list) else "–" if value is None else str(value)


def _description_list(pairs: Iterable[tuple[str, str]]) -> Markup | None:
    items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value]
    return tag("dl", *items, class_="facts") if items else None


def _axis(runs: Runs) -> tuple[str, Callable[[Step | Signals], float]]:
    """Epochs across where every log has them, else steps."""
    if all(math.isfinite(s.epoch) for run in runs for s in run.steps):
        return "epoch", lambda s: s.epoch
    return "step", lambda s: s.step
