"""The first screen of a report: what the features are worth beside baselines, and what is predicted over training."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from .comparisons import main_metrics, title_of
from .galleries import colour_keys, epoch_name, evenly_spaced, how_to_read, predicted
from .markup import Markup, fragment, picture, remark, tag
from .run_record import Evaluation, ProbeEpoch, RunRecord
from .scores import bars
from .sections import Runs, run_label, section

MOST_MEASURES, MOST_LOOKS, MOST_MORE, MOST_EPOCHS = 3, 6, 12, 8
_SIDE = 320  # pixels of a picture's longer side, twice what it is shown at
_PLACES = (  # of the three measures: the protocols that each is looked for among, the first first
    ("linear-lbfgs", "linear", "attentive", "finetune"),
    ("segment", "depth", "knn-whitened", "knn"),
    ("lowshot", "reconstruct", "finetune", "transfer"),
)


@dataclass(frozen=True)
class Shown:
    """A measure to be seen first: its title, the run's name, protocol, metric, and the baselines beside it."""

    title: str
    run: str
    protocol: str
    metric: str
    baselines: Sequence[str]


@dataclass(frozen=True)
class Summary:
    """What a page says first, under its title: a sentence, whether all is well, and groups of measures by heading."""

    title: str
    under: str
    sentence: str
    is_well: bool
    groups: Mapping[str, Sequence[Shown]]


def summarised(runs: Runs, summary: Summary) -> Markup:
    """The summary's sentence, its groups of measures, and six triptychs."""
    level = "ok" if summary.is_well else "warning"
    said = tag("p", tag("i", class_=f"lamp {level}"), summary.sentence, class_="headline")
    groups = [
        tag("div", tag("h2", heading), *(_shown(runs, one) for one in group), class_="group")
        for heading, group in summary.groups.items()
    ]
    verdict = tag("section", tag("article", said, class_=f"verdict {level}"), class_="health", aria_label="Summary")
    return fragment([verdict, _screen(groups, _looks(runs))])


def _shown(runs: Runs, one: Shown) -> Markup | None:
    results = [
        (place, run, evaluation)
        for place, run in enumerate(runs)
        for evaluation in run.evaluations
        if (run.name, evaluation.protocol) == (one.run, one.protocol) and one.metric in evaluation.metrics
    ]
    return bars(one.title, one.metric, results, one.baselines) if results else None


def _screen(measures: Sequence[Markup], looks: Markup | None) -> Markup:
    label = "Features and looks"
    return tag("section", tag("div", *measures, class_="measures"), looks, class_="overview", aria_label=label)


def overview(runs: Runs) -> Markup | None:
    """Three measures with their baselines, and six triptychs: hidden, predicted, original."""
    measures = [bars(title, metric, results) for title, metric, results in _measures(runs)]
    if not measures:
        command = f"unveil evaluate {shlex.quote(str(runs[0].path))} --data LABELLED_IMAGES"
        measures = [remark(f"The features were not measured on labelled images: {command}")]
    return _screen(measures, _looks(runs))


Measure = tuple[str, str, list[tuple[int, RunRecord, Evaluation]]]  # its title, its metric, and the results of the runs


def _measures(runs: Runs) -> list[Measure]:
    """Up to three measures, of each place the first that is there, and others where a place stays empty."""
    there: dict[str, Measure] = {}
    for i, run in enumerate(runs):
        for evaluation in run.evaluations:
            metrics = main_metrics(evaluation.metrics) or [m for m in evaluation.metrics if m.startswith("psnr")]
            if metrics:
                key, metric = evaluation.protocol, metrics[len(metrics) // 2]  # of several shares the middle one
                title = title_of(key, metric)
                there.setdefault(key, (title, metric, []))[2].append((i, run, evaluation))
    chosen = [next((name for name in names if name in there), None) for names in _PLACES]
    known = [name for name in chosen if name]
    for name in there:
        if len(known) < MOST_MEASURES and name not in known:
            known.append(name)
    return [there[name] for name in dict.fromkeys(known)]


@dataclass(frozen=True)
class _Triptych:
    """A look of a run: its caption, what was visible, the predictions at each place of the slider, the truth."""

    caption: str
    hidden: Path | None
    predicted: Sequence[Path | None]
    original: Path | None


def more_looks(runs: Runs) -> Markup | None:
    """The looks that are not on the first screen, folded."""
    looks = _looks(runs, MOST_LOOKS, MOST_MORE)
    return section("More reconstructions", looks, folds=True) if looks else None


def _looks(runs: Runs, first: int = 0, most: int = MOST_LOOKS) -> Markup | None:
    """Triptychs of all runs, as many of each, but for the `first`, and the slider that moves them over training."""
    shown = [(place, run, triptychs) for place, run in enumerate(runs) if (triptychs := _triptychs(run))]
    start, end = (min(n, max(1, n // max(1, len(shown)))) for n in (first, first + most))  # one of each run at least
    looks = [
        _drawn(triptych, run_label(run, place, runs))
        for place, run, triptychs in shown
        for triptych in triptychs[start:end]
    ]
    if not looks:
        return None
    epochs = [_epochs(run) for _, run, _ in shown]
    places = max(map(len, epochs))
    names = [
        " · ".join(dict.fromkeys(epoch_name(own[round(k * (len(own) - 1) / max(1, places - 1))]) for own in epochs))
        for k in range(places)
    ]
    slider = tag(
        "label", "over training ",
        tag("input", type="range", min=0, max=places - 1, value=places - 1, step=1, data_names="|".join(names)),
        tag("output", names[-1]), class_="slider",
    )  # fmt: skip
    heading = None if first else tag("h2", "Reconstructions")
    lead = tag("div", heading, "hidden, predicted, original", slider if places > 1 else None, class_="looking")
    keys = fragment(dict.fromkeys(filter(None, (colour_keys(run) for _, run, _ in shown))))
    notes = fragment(dict.fromkeys(remark(how_to_read(run)) for _, run, _ in shown))
    return tag("div", lead, tag("div", *looks, class_="triptychs"), keys, notes, class_="looks")


def _epochs(run: RunRecord) -> list[ProbeEpoch]:
    return evenly_spaced([e for e in run.probes.epochs if any(map(predicted, e.items.values()))], MOST_EPOCHS)


def _triptychs(run: RunRecord) -> list[_Triptych]:
    """A run's looks: of one modality its images; of several, predictions from the first one alone come first, of one
    sample after another, then those from the others, each beside predictions of hidden patches."""
    epochs, own = _epochs(run), list[_Triptych]()
    first = run.probes.names[0].rpartition(" · ")[2] if run.probes.names else ""
    across: dict[bool, list[_Triptych]] = {True: [], False: []}  # by whether they are from the first modality
    for probe, name in enumerate(run.probes.names):
        items = [epoch.items.get(probe, {}) for epoch in epochs]
        last = items[-1] if items else {}
        if not last:
            continue
        own.append(_Triptych(name, last.get("hidden"), [predicted(files) for files in items], last.get("original")))
        sample, _, _ = name.rpartition(" · ")
        for given in (key for key in last if key.startswith("from ")):
            there = f"{sample} · {given.removeprefix('from ')}"
            if there in run.probes.names:
                source = epochs[-1].items.get(run.probes.names.index(there), {}).get("original")
                over = [files.get(given) for files in items]
                look = _Triptych(f"{name} {given} alone", source, over, last.get("original"))
                across[given == f"from {first}"].append(look)
    return [*across[True], *(t for pair in zip_longest(own, across[False]) for t in pair if t)]


def _drawn(triptych: _Triptych, name: Markup | None) -> Markup:
    last = len(triptych.predicted) - 1
    over = [
        tag("span", picture(path, f"{triptych.caption}: predicted", _SIDE), data_at=k, hidden=k != last)
        for k, path in enumerate(triptych.predicted)
    ]
    return tag(
        "figure",
        picture(triptych.hidden, f"{triptych.caption}: visible", _SIDE),
        tag("span", *over, class_="over", data_last=last),
        picture(triptych.original, f"{triptych.caption}: original", _SIDE),
        tag("figcaption", name, triptych.caption),
        class_="triptych",
    )
