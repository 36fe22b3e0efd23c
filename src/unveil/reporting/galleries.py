"""The pictures of a report beside reconstructions: attention maps, guidance, nearest neighbours, a function each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from .markup import Markup, brief, figure, fragment, picture, tag
from .run_record import Files, Neighbour, ProbeEpoch, RunRecord
from .sections import Runs, by_run

T = TypeVar("T")


def attention_maps(runs: Runs) -> Markup | None:
    """The encoder's attention at several epochs."""
    most_probes, most_epochs = (4, 6) if len(runs) == 1 else (3, 5)

    def content(run: RunRecord) -> list[Markup | None]:
        rows = []
        for name, columns, items in islice(
            _over_epochs(run, most_epochs, lambda files: files.get("attention")), most_probes
        ):
            cells = [_cell(items[-1][1].get("original"), "original", name)]
            cells += [_cell(files.get("attention"), at, f"{name}, attention") for at, files in items]
            rows.append(_strip(cells, columns + 1))
        return [_gallery(rows)]

    key = tag("span", "low ", tag("i", class_="ramp"), " high", class_="key")
    explained = fragment(["The attention of the last block to each patch of the whole image, per image from ", key])
    return by_run("Attention", runs, content, explained)


def guidance(runs: Runs) -> Markup | None:
    """The attention that guides masks at several epochs, the mask, and the masks of the other samplers."""
    most_probes, most_epochs = (2, 6) if len(runs) == 1 else (1, 5)

    def content(run: RunRecord) -> list[Markup | None]:
        strips: list[Markup] = []
        for name, columns, items in islice(_over_epochs(run, most_epochs, partial(_named, "draw ")), most_probes):
            last = items[-1][1]
            draws = [_cell(last[way], way.removeprefix("draw "), f"{name}, drawn") for way in _named("draw ", last)]
            strips.append(_strip([_cell(last.get("original"), "original, drawn as", name), *draws], len(draws) + 1))
            kinds = {"teacher": "teacher", "student": "attention", "blend": "blend", "mask": "hidden"}
            for kind, picture_name in kinds.items():
                if any(picture_name in files for _, files in items):
                    cells = [tag("div", kind, class_="rowname")]
                    cells += [_cell(files.get(picture_name), at, f"{name}, {kind}") for at, files in items]
                    strips.append(_strip(cells, columns + 1))
        return [_gallery(strips, "gallery rows")]

    explained = (
        "First row: an image and the patches that each sampler would hide of it at the last epoch. Below, over"
        " training: the attention of the frozen teacher, of the student, their blend, and the mask that was drawn."
    )
    return by_run("Guidance", runs, content, explained)


def across_modalities(runs: Runs) -> Markup | None:
    """Predictions of one modality when another one alone is given."""
    most_rows, most_epochs = (12, 6) if len(runs) == 1 else (6, 5)

    def content(run: RunRecord) -> list[Markup | None]:
        strips: list[Markup] = []
        for name, columns, items in _over_epochs(run, most_epochs, partial(_named, "from ")):
            last = items[-1][1]
            for given in _named("from ", last):
                cells = [_cell(last.get("original"), f"{name.rpartition(' · ')[2]} {given}", name)]
                cells += [_cell(files.get(given), at, f"{name}, {given} alone") for at, files in items]
                strips.append(_strip(cells, columns + 1))
        return [_gallery(strips[:most_rows], "gallery rows"), colour_keys(run)] if strips else []

    explained = "One modality is visible and all others are hidden: first the ground truth, then the prediction."
    return by_run("Across modalities", runs, content, explained)


def _over_epochs(
    run: RunRecord, most: int, shows: Callable[[Files], object]
) -> Iterator[tuple[str, int, list[tuple[str, Files]]]]:
    """Each probe that has such pictures: its name, the number of epochs shown, and the pictures by epoch."""
    epochs = evenly_spaced([e for e in run.probes.epochs if any(map(shows, e.items.values()))], most)
    for probe, name in enumerate(run.probes.names):
        items = [(epoch_name(e), e.items[probe]) for e in epochs if probe in e.items and shows(e.items[probe])]
        if items:
            yield name, len(epochs), items


def _gallery(strips: Sequence[Markup], class_: str = "gallery") -> Markup | None:
    return tag("div", *strips, class_=class_) if strips else None


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
    """For some queries the images with the most similar features."""
    most_rows, most_neighbours = (6, 7) if len(runs) == 1 else (4, 7)

    def content(run: RunRecord) -> list[Markup | None]:
        rows = [_neighbour_row(*row, i, most_neighbours) for i, row in enumerate(run.neighbours[:most_rows])]
        return [_gallery(rows, "gallery near")]

    explained = "The query, then the images with the nearest features and their distances. A tick marks equal labels."
    return by_run("Nearest neighbours", runs, content, explained)


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _neighbour_row(query: Neighbour, neighbours: Sequence[Neighbour], place: int, most: int) -> Markup:
    cells = [_cell(query.image, query.label or "query", f"query {place + 1}")]
    for near in neighbours[:most]:
        same = near.label is not None and near.label == query.label
        distance = "" if math.isnan(near.distance) else figure(near.distance, 2)
        caption = " ".join(filter(None, (distance, near.label, "✓" if same else "")))
        cells.append(_cell(near.image, caption, f"neighbour of query {place + 1}", "same" if same else None))
    return _strip(cells, 1 + min(most, len(neighbours)))


def _cell(path: Path | None, caption: str, alt: str, class_: str | None = None) -> Markup:
    return tag("figure", picture(path, f"{alt}: {caption}"), tag("figcaption", caption), class_=class_)


def _strip(cells: Sequence[Markup], columns: int) -> Markup:
    return tag("div", *cells, class_="strip", style=f"--columns:{columns}")


def epoch_name(at: ProbeEpoch) -> str:
    """When pictures were drawn, in words."""
    if math.isnan(at.epoch):
        return f"step {at.step}"
    return f"epoch {brief(round(at.epoch, 1))}" if at.epoch >= 1 else f"epoch {at.epoch:.2g}"


def how_to_read(run: RunRecord) -> Markup:
    """What the predicted pictures of a run show."""
    note = f" {run.probes.note}" if run.probes.note else ""
    if any("features" in files for epoch in run.probes.epochs for files in epoch.items.values()):
        text = (
            "this model predicts features, not pixels. The colour of a hidden patch is the distance between predicted"
            f" and true features (1 - cosine): dark where they agree, light where they are unrelated.{note}"
        )
        return tag("span", tag("strong", "Features: "), text)
    if not run.probes.norm_pix:
        return tag("span", f"Predictions are pixels.{note}")
    text = (
        "each patch is predicted relative to its own mean and standard deviation. It is drawn with the mean and the "
        f"standard deviation of the true patch, which the model does not know: compare structure, not brightness.{note}"
    )
    return tag("span", tag("strong", "Norm-pix: "), text)
