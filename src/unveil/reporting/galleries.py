"""The pictures of a report beside reconstructions: attention maps, guidance, nearest neighbours, a function each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .frames import Frames, Mask, drawn_frames, epochs_with, names_of, outline, probes_over, timed
from .markup import Markup, figure, fragment, percent, picture, tag
from .run_record import Files, Neighbour, NeighbourRow, RunRecord
from .sections import Runs, by_run

MOST_EPOCHS = 8


def attention_maps(runs: Runs) -> Markup | None:
    """The encoder's attention over training, below one slider."""
    most = 6 if len(runs) == 1 else 3

    def content(run: RunRecord) -> list[Markup | None]:
        epochs = epochs_with(run, MOST_EPOCHS, lambda files: files.get("attention"))
        figures = []
        for _, name, items in probes_over(epochs, run):
            over = Frames(f"{name}, attention", {"attention": [files.get("attention") for files in items]})
            figures.append(_figure(name, _still(items[-1].get("original"), name), drawn_frames(over)))
        grid = tag("div", *figures[:most], class_="pairs")
        return [timed(names_of([epochs]), [grid])] if figures else []

    key = tag("span", "1/8 ", tag("i", class_="ramp"), " 8", class_="key")
    explained = fragment([
        "The attention of the last block to each patch of the whole image, over that of an even map, on one scale for"
        " all images and epochs: ", key, " times.",
    ])  # fmt: skip
    return by_run("Attention", runs, content, explained)


def guidance(runs: Runs) -> Markup | None:
    """The attention that guides masks over training, the mask, and the masks of the other samplers."""
    most = 2 if len(runs) == 1 else 1
    kinds = {"teacher": "teacher", "attention": "student", "blend": "blend", "hidden": "mask"}

    def content(run: RunRecord) -> list[Markup | None]:
        epochs = epochs_with(run, MOST_EPOCHS, lambda files: _named("draw ", files))
        rows: list[Markup] = []
        for _, name, items in list(probes_over(epochs, run))[:most]:
            last = items[-1]
            cells = [_cell(last.get("original"), "original", name)]
            for kind, words in kinds.items():
                if any(kind in files for files in items):
                    over = drawn_frames(Frames(f"{name}, {words}", {words: [files.get(kind) for files in items]}))
                    cells.append(tag("figure", over, tag("figcaption", words)))
            draws = [_cell(last[way], f"{way.removeprefix('draw ')} hides", name) for way in _named("draw ", last)]
            rows += [_strip(cells), _strip(draws)]
        return [timed(names_of([epochs]), rows)] if rows else []

    explained = (
        "Over training: the attention of the frozen teacher, of the student, their blend, and the mask that was drawn."
        " Below: the patches that each sampler would hide of the image at the last epoch."
    )
    return by_run("Guidance", runs, content, explained)


def across_modalities(runs: Runs) -> Markup | None:
    """Predictions of one modality when another one alone is given."""
    most = 12 if len(runs) == 1 else 6

    def content(run: RunRecord) -> list[Markup | None]:
        epochs = epochs_with(run, MOST_EPOCHS, lambda files: _named("from ", files))
        figures: list[Markup] = []
        for _, name, items in probes_over(epochs, run):
            sample, _, own = name.rpartition(" · ")
            for given in _named("from ", items[-1]):
                over = Frames(f"{name}, {given} alone", {"predicted": [files.get(given) for files in items]})
                caption = f"{sample} · {own} {given}" if sample else f"{name} {given}"
                figures.append(_figure(caption, drawn_frames(over), _still(items[-1].get("original"), name)))
        grid = tag("div", *figures[:most], class_="pairs")
        return [timed(names_of([epochs]), [grid]), colour_keys(run)] if figures else []

    explained = "One modality is visible and all others are hidden: first the prediction, then the ground truth."
    return by_run("Across modalities", runs, content, explained)


def beside_baselines(runs: Runs) -> Markup | None:
    """What the model itself predicts, the same with what it cannot know, and what interpolation gives, with errors."""
    most = 3 if len(runs) == 1 else 2
    titles = {
        "hidden": "visible", "unaided": "predicted", "reconstructed": "with the true mean and deviation",
        "interpolated": "interpolated", "original": "original",
    }  # fmt: skip

    def content(run: RunRecord) -> list[Markup | None]:
        rows: list[Markup] = []
        for epoch in run.probes.epochs[-1:]:
            for probe, name in enumerate(run.probes.names):
                files, errors = epoch.items.get(probe, {}), epoch.errors.get(probe, {})
                if "interpolated" not in files or not predicted(files):
                    continue
                shown = {kind: title for kind, title in titles.items() if kind in files}
                if "unaided" not in files:
                    shown["reconstructed"] = "predicted"
                cells = []
                for kind, title in shown.items():
                    error = errors.get(kind, math.nan)
                    words = f"{title}, error {percent(error)}" if math.isfinite(error) else title
                    mask = None if kind == "hidden" else epoch.masks.get(probe)
                    cells.append(_cell(files[kind], words, name, mask=mask))
                rows += [tag("p", name, class_="metric"), _strip(cells)]
        return [tag("div", *rows[: 2 * most], class_="looks")] if rows else []

    explained = (
        "Interpolated: every hidden pixel is the mean of the visible ones, weighted by their inverse squared distance"
        " (of classes the nearest one), without any model. The error is the root mean square over hidden pixels, as a"
        " share of the range of values (of classes: the share of wrong pixels). Lines border what is hidden."
    )
    return by_run("Predictions beside a baseline", runs, content, explained, is_open=len(runs) == 1)


def other_masks(runs: Runs) -> Markup | None:
    """Predictions of one image under several masks."""

    def content(run: RunRecord) -> list[Markup | None]:
        rows: list[Markup] = []
        for epoch in run.probes.epochs[-1:]:
            for probe, name in enumerate(run.probes.names):
                files = epoch.items.get(probe, {})
                if not (others := [key.removeprefix("mask ") for key in _named("mask ", files)]):
                    continue
                first = files.get("unaided") or files.get("reconstructed")
                masks = [_cell(files.get("hidden"), "mask 1", name)]
                masks += [_cell(files[f"mask {k}"], f"mask {k}", name) for k in others]
                predictions = [_cell(first, "predicted", f"{name}, under mask 1")]
                predictions += [
                    _cell(files.get(f"predicted {k}"), "predicted", f"{name}, under mask {k}") for k in others
                ]
                rows += [tag("p", name, class_="metric"), _strip(masks), _strip(predictions)]
        return [tag("div", *rows, class_="looks")] if rows else []

    explained = "What differs between the predictions is what the visible patches leave open."
    return by_run("One image under several masks", runs, content, explained)


def colour_keys(run: RunRecord) -> Markup | None:
    """What the colours of measured maps and of classes mean."""
    lines = []
    for key in run.probes.keys:
        name, classes, colours = str(key.get("name", "")), key.get("classes"), key.get("colours")
        if isinstance(classes, list) and isinstance(colours, list):
            spots = [
                tag("span", tag("i", class_="swatch", style=f"background:{_rgb(c)}"), str(word))
                for word, c in zip(classes, colours, strict=False)
            ]
            lines.append(tag("p", tag("strong", name), *spots, class_="classes"))
        elif isinstance(stops := key.get("stops"), list):
            ramp = f"background:linear-gradient(90deg,{','.join(map(_rgb, stops))})"
            bar = (f"{key.get('low', '')} ", tag("i", class_="ramp", style=ramp), f" {key.get('high', '')}")
            lines.append(tag("p", tag("strong", name), tag("span", *bar, class_="key"), class_="classes"))
    return tag("div", *lines) if lines else None


def _rgb(colour: object) -> str:
    """A colour of an index as CSS; black for what is none, for the index is read from a file."""
    values = colour if isinstance(colour, list) and len(colour) == 3 else [0, 0, 0]
    return f"rgb({' '.join(str(int(v)) if isinstance(v, int | float) and 0 <= v <= 255 else '0' for v in values)})"


def predicted(files: Files) -> Path | None:
    """The predicted patches, or else the distance of predicted features from the true ones."""
    return files.get("reconstructed") or files.get("features")


def _named(prefix: str, files: Files) -> list[str]:
    return [name for name in files if name.startswith(prefix)]


def nearest_neighbours(runs: Runs) -> Markup | None:
    """For some queries the images with the most similar features, and beside them those by colour alone."""
    most_rows, most_neighbours = (6, 6) if len(runs) == 1 else (4, 6)

    def content(run: RunRecord) -> list[Markup | None]:
        rows = [_neighbour_row(row, i, most_neighbours) for i, row in enumerate(run.neighbours[:most_rows])]
        return [tag("div", *rows, class_="looks near")] if rows else []

    explained = (
        "The query, then the images with the nearest features and their distances, then those that share its colours"
        " (whatever their place): features are worth something where the first are better. A tick marks equal labels."
        " Near-duplicates are shown once, with their number."
    )
    return by_run("Nearest neighbours", runs, content, explained)


def _neighbour_row(row: NeighbourRow, place: int, most: int) -> Markup:
    query = row.query

    def cells(neighbours: Sequence[Neighbour], words: str, has_distance: bool) -> list[Markup]:
        drawn = []
        for near in neighbours:
            same = near.label is not None and near.label == query.label
            distance = figure(near.distance, 2) if has_distance and not math.isnan(near.distance) else ""
            alike = f"+{near.alike} alike" if near.alike else ""
            caption = " ".join(filter(None, (distance, near.label, alike)))
            caption += "\N{NO-BREAK SPACE}✓" if same else ""
            drawn.append(_cell(near.image, caption or words, f"query {place + 1}, {words}", "same" if same else None))
        return drawn

    first = [_cell(query.image, query.label or "query", f"query {place + 1}", "query")]
    own = tag("div", *first, *cells(row.neighbours[:most], "near by features", True), class_="strip")
    if not row.by_colour:
        return own
    alone = cells(row.by_colour[:3], "near by colour", False)
    colour = tag(
        "div", tag("p", "by colour alone", class_="metric"), tag("div", *alone, class_="strip"), class_="aside"
    )
    return tag("div", own, colour, class_="query-row")


def _cell(path: Path | None, caption: str, alt: str, class_: str | None = None, mask: Mask | None = None) -> Markup:
    shown = picture(path, f"{alt}: {caption}")
    covered = tag("span", shown, outline(mask), class_="over") if mask else shown
    return tag("figure", covered, tag("figcaption", caption), class_=class_)


def _still(path: Path | None, name: str) -> Markup:
    return picture(path, f"{name}: original")


def _figure(caption: str, *pictures: Markup) -> Markup:
    """Two pictures side by side, with one caption below them."""
    return tag("figure", *pictures, tag("figcaption", caption), class_="pair")


def _strip(cells: Sequence[Markup]) -> Markup:
    return tag("div", *cells, class_="strip")


def how_to_read(run: RunRecord) -> Markup:
    """What the predicted pictures of a run show."""
    note = f" {run.probes.note}" if run.probes.note else ""
    files_of_all = [files for epoch in run.probes.epochs for files in epoch.items.values()]
    if any("features" in files for files in files_of_all):
        text = (
            "this model predicts features, not pixels. The colour of a hidden patch is the distance between predicted"
            f" and true features (1 - cosine): dark where they agree, light where they are unrelated.{note}"
        )
        return tag("span", tag("strong", "Features: "), text)
    if not run.probes.norm_pix:
        return tag("span", f"Predictions are pixels.{note}")
    if any("unaided" in files for files in files_of_all):
        text = (
            "each patch is predicted relative to its own mean and standard deviation. “Predicted” has those that the"
            " model predicts, or a neutral colour where it predicts none; the other switch puts back those of the true"
            f" patch, which the model does not know: an untrained model then shows the image in outline.{note}"
        )
        return tag("span", tag("strong", "Norm-pix: "), text)
    text = (
        "each patch is predicted relative to its own mean and standard deviation. It is drawn with the mean and the "
        f"standard deviation of the true patch, which the model does not know: compare structure, not brightness.{note}"
    )
    return tag("span", tag("strong", "Norm-pix: "), text)
