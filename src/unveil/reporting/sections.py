"""The written sections of a report: what was run, how it went, what was measured. One function a section.

A section is a function from the runs to Markup, or to None where there is nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ..runs.console import duration
from .charts import NUM_COLOURS, Line, line_chart
from .markup import Markup, brief, count, figure, html_table, percent, tag
from .run import RunRecord, Signals, Step, number
from .verdict import headline, judge

Runs = Sequence[RunRecord]


def section(title: str, *children: object, explained: object = None) -> Markup:
    """A titled part of the page, with a line that says how to read it."""
    return tag("section", tag("h2", title), tag("p", explained, class_="lead") if explained else None, *children)


def named(run: RunRecord, place: int, runs: Runs) -> Markup | None:
    """A run's name with its colour, where there are several runs."""
    return tag("h3", tag("i", class_=f"spot s{place % NUM_COLOURS}"), run.name) if len(runs) > 1 else None


def health(runs: Runs) -> Markup:
    """The verdict on each run: a headline, the findings, what to do."""
    cards = []
    for place, run in enumerate(runs):
        verdicts = judge(run, [other for other in runs if other is not run])
        top = headline(verdicts)
        findings = [
            tag(
                "li",
                tag("span", v.level, class_=f"level {v.level}"),
                tag("span", v.sentence, " ", tag("em", v.advice) if v.advice else None),
            )
            for v in verdicts
        ]
        heading = tag("p", top.sentence, class_="headline")
        cards.append(
            tag("article", named(run, place, runs), heading, tag("ul", *findings), class_=f"verdict {top.level}")
        )
    return tag("section", *cards, class_="health", aria_label="Verdict")


def key_figures(runs: Runs) -> Markup | None:
    """The five numbers of a single run."""
    if len(runs) > 1:
        return None
    run = runs[0]
    signals = run.last_signals
    tiles = [
        ("final loss", figure(run.final_loss), f"{brief(run.epochs_done)} epochs"),
        ("held-out loss", figure(signals.heldout_loss), "on images kept apart"),
        ("images/s", figure(run.images_per_second), duration(run.seconds)),
        ("RankMe", figure(signals.rankme), f"of {figure(signals.feature_dim)} dimensions"),
    ]
    for evaluation in run.evaluations:
        accuracy = evaluation.metrics.get("accuracy", math.nan)
        untrained = evaluation.baselines.get("untrained", {}).get("accuracy", math.nan)
        beside = "" if math.isnan(untrained) else f"untrained {percent(untrained)}"
        tiles.append((f"{evaluation.name} accuracy", percent(accuracy), beside))
    tiles = [tile for tile in tiles if tile[1] != "–"]
    if not tiles:
        return None
    return tag(
        "section",
        *(tag("div", tag("dt", name), tag("dd", value, tag("small", beside))) for name, value, beside in tiles),
        class_="tiles",
        aria_label="Key figures",
    )


def what_was_run(runs: Runs) -> Markup:
    """Recipe, data, model, settings and command of each run, and what was changed from the paper."""
    return section("What was run", *(_one_run(run, place, runs) for place, run in enumerate(runs)))


def curves(runs: Runs) -> Markup | None:
    """Loss, speed, gradient norm and learning rate over epochs; several runs in one picture."""
    axis, at = _axis(runs)
    several = {name for run in runs for s in run.steps for name in s.losses}

    def lines(value: Callable[[Step], float]) -> list[Line]:
        return [
            Line(run.name, [at(s) for s in run.steps], [value(s) for s in run.steps], i, noisy=True)
            for i, run in enumerate(runs)
        ]

    charts = [line_chart("Loss", lines(lambda s: s.loss), x_label=axis, note="of the training images", offers_log=True)]
    if len(several) > 1:
        for name in sorted(several):
            parts = lines(lambda s, name=name: s.losses.get(name, math.nan))  # type: ignore[misc]
            charts.append(line_chart(f"Loss: {name}", parts, x_label=axis, offers_log=True))
    is_alone = len(runs) == 1
    if not is_alone:
        minutes = [
            Line(r.name, [s.time / 60 for s in r.steps], [s.loss for s in r.steps], i, noisy=True)
            for i, r in enumerate(runs)
        ]
        charts.append(line_chart("Loss over time", minutes, x_label="minutes", offers_log=True))
    charts += [
        line_chart("Images per second", lines(lambda s: s.images_per_second), x_label=axis, from_zero=True),
        line_chart("Waiting for data", lines(lambda s: s.data_wait), x_label=axis, note="share", from_zero=True),
        line_chart("Gradient norm", lines(lambda s: s.grad_norm), x_label=axis, is_log=True),
        line_chart("Memory", lines(lambda s: s.memory_mb), x_label=axis, note="MB", from_zero=True)
        if is_alone
        else None,
        line_chart("Learning rate", [_plain(line) for line in lines(lambda s: s.lr)], x_label=axis, from_zero=True),
        _continued(runs),
    ]
    explained = "Thin: every logged step. Thick: a moving average. Point at a chart to read its values."
    return section("Curves", charts_of(charts), explained=explained) if any(charts) else None


def _continued(runs: Runs) -> Markup | None:
    """The schedules of runs that go on with a training, dashed, and the part of each that the run rides."""
    lines = []
    for i, run in enumerate(runs):
        whole, own = (_points(run.fact("schedule", part)) for part in ("whole", "run"))
        if whole[0]:
            lines += [Line(f"{run.name}: the training that goes on", *whole, i, is_dashed=True)]
            lines += [Line(f"{run.name}", *own, i)]
    return line_chart("Schedule of the learning rate", lines, x_label="epoch", note="from the first training's start")


def _points(told: object) -> tuple[list[float], list[float]]:
    pairs = [p for p in told if isinstance(p, list) and len(p) == 2] if isinstance(told, list) else []
    return [number(x) for x, _ in pairs], [number(y) for _, y in pairs]


def label_free(runs: Runs) -> Markup | None:
    """Held-out loss, RankMe and feature spread: what can be known of features without labels."""
    axis, at = _axis(runs)

    def lines(value: Callable[[Signals], float]) -> list[Line]:
        return [Line(r.name, [at(s) for s in r.signals], [value(s) for s in r.signals], i) for i, r in enumerate(runs)]

    charts = [
        line_chart("Held-out loss", lines(lambda s: s.heldout_loss), x_label=axis, note="on images kept apart"),
        line_chart("RankMe", lines(lambda s: s.rankme), x_label=axis, note="dimensions that the features use"),
        line_chart("Feature spread", lines(lambda s: s.feature_std), x_label=axis, note="std", from_zero=True),
    ]
    if not any(charts):
        return None
    explained = (
        "Measured on held-out images while training. RankMe is the effective number of dimensions of the features: "
        "the exponential of the entropy of their singular values. A fall to a few is collapse, and so is a spread "
        "over images near zero."
    )
    return section("Signals that need no labels", charts_of(charts), explained=explained)


def broken_files(runs: Runs) -> Markup | None:
    """Files that could not be read."""
    most = 50
    blocks = []
    for place, run in enumerate(runs):
        if run.broken:
            listed = list(run.broken.items())
            more = tag("p", f"… and {len(listed) - most:,} more, in broken.json.") if len(listed) > most else None
            blocks += [
                named(run, place, runs),
                html_table(["file", "reason"], listed[:most], class_="words"),
                more,
            ]
    return section("Broken files", *blocks, explained="Another sample took their place.") if blocks else None


def environment(runs: Runs) -> Markup | None:
    """Versions, machine and settings: what someone needs to run it again."""
    blocks = []
    for place, run in enumerate(runs):
        facts = [("unveil", run.text("unveil")), ("commit", run.text("git")), ("started", run.text("started"))]
        facts += [("finished", run.text("finished"))]
        for part in ("versions", "settings", "optim"):
            facts += [(str(k), _said(v)) for k, v in run.mapping(part).items()]
        if listed := _facts(facts):
            blocks += [named(run, place, runs), listed]
    return section("Environment", *blocks) if blocks else None


def _one_run(run: RunRecord, place: int, runs: Runs) -> Markup:
    size, data = run.fact("data", "image_size"), run.number("data", "count")
    size = " x ".join(str(s) for s in size) if isinstance(size, list) else size
    parameters = {part: run.number("model", "parameters", part) for part in ("encoder", "decoder")}
    model = [f"{count(n)} {part}" for part, n in parameters.items() if math.isfinite(n)]
    tokens = [
        f"{run.text('model', key)} {word}"
        for key, word in (("num_tokens", "in all"), ("num_visible", "visible"), ("num_predicted", "predicted"))
        if run.text("model", key)
    ]
    held_out = run.number("data", "held_out")
    images = f"{data:,.0f}" + (f", {held_out:,.0f} held out" if held_out > 0 else "") if math.isfinite(data) else ""
    epochs = f"{brief(run.epochs_done)} of {run.text('dials', 'epochs') or '?'}" if run.steps else ""
    facts = _facts(
        [
            ("recipe", run.text("recipe")),
            ("data", run.text("data", "address")),
            ("images", images),
            ("image size", f"{size}, {run.text('data', 'channels') or '?'} channels" if size else ""),
            ("parameters", ", ".join(model)),
            ("a step", _steps(run)),
            ("tokens", ", ".join(tokens)),
            ("epochs", epochs),
            ("time", duration(run.seconds) if math.isfinite(run.seconds) else ""),
            ("device", ", ".join(filter(None, (run.text("settings", "device"), run.text("settings", "precision"))))),
            ("seed", run.text("seed")),
            ("status", run.text("status")),
        ]
    )
    command = run.text("command")
    copyable = tag("div", tag("pre", tag("code", command)), tag("button", "copy", type="button"), class_="command")
    remarks = tag("p", " ".join(run.remarks), class_="remark") if run.remarks else None
    parts = (facts, copyable if command else None, _changes(run), _dials(run), remarks)
    return tag("article", named(run, place, runs), *parts)


def _steps(run: RunRecord) -> str:
    """What a step of each stage trains, beside which teachers, and its operations for an image."""
    stages = run.fact("model", "stages")
    stages = [s for s in stages if isinstance(s, dict)] if isinstance(stages, list) else []
    told = []
    for stage in stages:
        trained, guides, flops = (number(stage.get(key)) for key in ("trained", "guides", "flops"))
        parts = [f"{count(trained)} trained"] if math.isfinite(trained) else []
        parts += [f"{count(guides)} of teachers"] if guides > 0 else []
        parts += [f"{flops / 1e9:.3g} GFLOPs an image"] if math.isfinite(flops) else []
        which = f"{brief(number(stage.get('epochs')))} epochs: " if len(stages) > 1 else ""
        told.append(which + ", ".join(parts))
    return "; ".join(told)


def _changes(run: RunRecord) -> Markup | None:
    changes = run.fact("changes")
    if changes == []:
        return tag("p", "Nothing was changed from the paper.")
    if not isinstance(changes, list):
        return None
    changes = [c for c in changes if isinstance(c, dict)]
    rows = [[_said(c.get("dial")), _said(c.get("paper")), _said(c.get("used")), _said(c.get("why"))] for c in changes]
    return tag(
        "details",
        tag("summary", f"{len(rows)} dials were changed from the paper to fit this data and machine"),
        html_table(["dial", "paper", "here", "why"], rows, class_="words"),
        open=True,
    )


def _dials(run: RunRecord) -> Markup | None:
    dials = _facts((str(k), _said(v)) for k, v in run.mapping("dials").items())
    return tag("details", tag("summary", "All dials"), dials) if dials else None


def _said(value: object) -> str:
    if isinstance(value, float):
        return brief(value)
    return " ".join(_said(v) for v in value) if isinstance(value, list) else "–" if value is None else str(value)


def _facts(pairs: Iterable[tuple[str, str]]) -> Markup | None:
    told = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value]
    return tag("dl", *told, class_="facts") if told else None


def charts_of(charts: Iterable[Markup | None]) -> Markup:
    """A row of charts; those that are None are left out."""
    return tag("div", *charts, class_="charts")


def _plain(line: Line) -> Line:
    return Line(line.name, line.x, line.y, line.colour)


def _axis(runs: Runs) -> tuple[str, Callable[[Step | Signals], float]]:
    """Epochs across where every log has them, else steps."""
    if all(math.isfinite(s.epoch) for run in runs for s in run.steps):
        return "epoch", lambda s: s.epoch
    return "step", lambda s: s.step
