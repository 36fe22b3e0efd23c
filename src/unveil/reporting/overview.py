"""The first screen of a report: what the features are worth beside baselines, and what is predicted over training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from .comparisons import main_metrics, title_of
from .frames import SIDE, Frames, drawn_frames, epochs_with, names_of, outline, probes_over, slider, switch
from .galleries import colour_keys, how_to_read, predicted
from .markup import Markup, fragment, percent, picture, remark, tag
from .run_record import Evaluation, Files, ProbeEpoch, RunRecord
from .scores import bars
from .sections import Runs, run_label, section

MOST_MEASURES, MOST_LOOKS, MOST_MORE, MOST_EPOCHS = 3, 6, 12, 8
KINDS = {  # of what the middle picture of a triptych shows: words on the switch
    "predicted": "by the model", "aided": "with true means", "interpolated": "interpolation",
}  # fmt: skip
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
    left = tag("div", *measures, class_="measures") if measures else None
    return tag("section", left, looks, class_="overview", aria_label=label)


def overview(runs: Runs) -> Markup | None:
    """Three measures with their baselines, where features were measured, and six triptychs."""
    measures = [bars(title, metric, results, is_named=len(runs) > 1) for title, metric, results in _measures(runs)]
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
    predicted: Frames
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
    names = names_of([epochs_with(run, MOST_EPOCHS, predicted) for _, run, _ in shown])
    own = {kind for _, _, triptychs in shown for triptych in triptychs[start:end] for kind in triptych.predicted.kinds}
    kinds = {kind: words for kind, words in KINDS.items() if kind in own}
    has_masks = any(triptych.predicted.mask for _, _, triptychs in shown for triptych in triptychs[start:end])
    outlined = (
        tag(
            "label",
            tag("input", type="checkbox", class_="outlines"),
            " outlines",
            title="the borders of hidden patches",
        )
        if has_masks
        else None
    )
    heading = None if first else tag("h2", "Reconstructions")
    switches = [one for one in (switch("predicted", kinds), outlined) if one]
    keys = fragment(dict.fromkeys(filter(None, (colour_keys(run) for _, run, _ in shown))))
    notes = fragment(
        dict.fromkeys(remark(fragment(["Visible, predicted, original. ", how_to_read(run)])) for _, run, _ in shown)
    )
    words = None if switches else tag("span", "visible, predicted, original")
    lead = tag("div", heading, words, *switches, slider(names), class_="looking")
    return tag("div", lead, tag("div", *looks, class_="triptychs"), keys, notes, class_="looks")


def _triptychs(run: RunRecord) -> list[_Triptych]:
    """A run's looks: of one modality its images; of several, predictions from the first one alone come first, of one
    sample after another, then those from the others, each beside predictions of hidden patches."""
    epochs, own = epochs_with(run, MOST_EPOCHS, predicted), list[_Triptych]()
    first = run.probes.names[0].rpartition(" · ")[2] if run.probes.names else ""
    across: dict[bool, list[_Triptych]] = {True: [], False: []}  # by whether they are from the first modality
    for probe, name, items in probes_over(epochs, run):
        if not (last := items[-1]):
            continue
        own.append(_Triptych(name, last.get("hidden"), _frames(name, probe, epochs, items), last.get("original")))
        sample, _, _ = name.rpartition(" · ")
        for given in (key for key in last if key.startswith("from ")):
            there = f"{sample} · {given.removeprefix('from ')}"
            if there in run.probes.names:
                source = epochs[-1].items.get(run.probes.names.index(there), {}).get("original")
                over = Frames(f"{name} {given} alone", {"predicted": [files.get(given) for files in items]})
                look = _Triptych(f"{name} {given} alone", source, over, last.get("original"))
                across[given == f"from {first}"].append(look)
    return [*across[True], *(t for pair in zip_longest(own, across[False]) for t in pair if t)]


def _frames(name: str, probe: int, epochs: Sequence[ProbeEpoch], items: Sequence[Files]) -> Frames:
    """The predictions of a probe over training, of each kind that is there, with their errors in words."""
    is_aided = any("unaided" in files for files in items)
    sources = {"predicted": "unaided", "aided": "reconstructed"} if is_aided else {"predicted": "reconstructed"}
    sources["interpolated"] = "interpolated"
    paths = {kind: [files.get(source) for files in items] for kind, source in sources.items()}
    if not is_aided:
        paths["predicted"] = [predicted(files) for files in items]
    paths = {kind: own for kind, own in paths.items() if any(own) or kind == "predicted"}
    masks = [epoch.masks.get(probe) for epoch in epochs]
    is_fixed = all(mask == masks[-1] for mask in masks)  # masks that follow attention change over training
    if "interpolated" in paths and is_fixed:
        paths["interpolated"] = paths["interpolated"][-1:]
    errors = {}
    for kind in paths:
        known = [epoch.errors.get(probe, {}).get(sources[kind], math.nan) for epoch in epochs]
        base = [epoch.errors.get(probe, {}).get("interpolated", math.nan) for epoch in epochs]
        beside = "" if kind == "interpolated" else "; interpolation {}"
        errors[kind] = [
            f"error {percent(a)}" + (beside.format(percent(b)) if math.isfinite(b) else "") if math.isfinite(a) else ""
            for a, b in zip(known, base, strict=True)
        ][-len(paths[kind]) :]
    return Frames(name, paths, errors, masks[-1] if is_fixed else None)


def _drawn(triptych: _Triptych, name: Markup | None) -> Markup:
    mask, words = triptych.predicted.mask, triptych.predicted.errors.get("predicted", ())
    truth = picture(triptych.original, f"{triptych.caption}: original", SIDE)
    error = tag("output", words[-1], class_="error") if any(words) else None
    return tag(
        "figure",
        picture(triptych.hidden, f"{triptych.caption}: visible", SIDE),
        drawn_frames(triptych.predicted),
        tag("span", truth, outline(mask), class_="over") if mask else truth,
        tag("figcaption", name, triptych.caption, " " if error else None, error),
        class_="triptych",
    )
