"""The pictures of a report: reconstructions, attention maps, nearest neighbours. One function a section."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from .markup import Markup, brief, figure, join, picture, tag
from .run import NeighbourRow, ProbeEpoch, Run
from .sections import Runs, named, section

T = TypeVar("T")


def reconstructions(runs: Runs) -> Markup | None:
    """A row per probe: original, hidden, then what the model made of it at several epochs."""
    blocks: list[Markup | None] = []
    most_probes, most_epochs = (8, 6) if len(runs) == 1 else (4, 5)
    for place, run in enumerate(runs):
        epochs = spread(run.probes.epochs, most_epochs)
        rows = []
        for probe, name in list(enumerate(run.probes.names))[:most_probes]:
            seen = [(e, e.items[probe]) for e in epochs if probe in e.items]
            if seen:
                last = seen[-1][1]
                cells = [_cell(last.original, "original", name), _cell(last.hidden, "hidden", name)]
                cells += [_cell(files.reconstructed, _epoch(e), f"{name}, reconstructed") for e, files in seen]
                rows.append(_strip(cells, len(epochs) + 2))
        if rows:
            told = tag("p", _how_to_read(run), class_="remark")
            blocks += [named(run, place, runs), tag("div", *rows, class_="gallery"), told]
    explained = (
        "Fixed held-out images under fixed masks. The model sees only the patches that are not grey, "
        "and predicts the rest."
    )
    return section("Reconstructions", *blocks, explained=explained) if blocks else None


def attention_maps(runs: Runs) -> Markup | None:
    """Where the encoder looks, over epochs."""
    blocks: list[Markup | None] = []
    most_probes, most_epochs = (4, 6) if len(runs) == 1 else (3, 5)
    for place, run in enumerate(runs):
        epochs = spread([e for e in run.probes.epochs if any(f.attention for f in e.items.values())], most_epochs)
        rows = []
        for probe, name in list(enumerate(run.probes.names))[:most_probes]:
            seen = [(e, e.items[probe]) for e in epochs if probe in e.items and e.items[probe].attention]
            if seen:
                cells = [_cell(seen[-1][1].original, "original", name)]
                cells += [_cell(files.attention, _epoch(e), f"{name}, attention") for e, files in seen]
                rows.append(_strip(cells, len(epochs) + 1))
        if rows:
            blocks += [named(run, place, runs), tag("div", *rows, class_="gallery")]
    if not blocks:
        return None
    key = tag("span", "low ", tag("i", class_="ramp"), " high", class_="key")
    explained = join(["How much the last block attends to each patch of the whole image, per image from ", key])
    return section("Attention", *blocks, explained=explained)


def nearest_neighbours(runs: Runs) -> Markup | None:
    """For some queries the images with the most similar features."""
    blocks: list[Markup | None] = []
    most_rows, most_neighbours = (6, 7) if len(runs) == 1 else (4, 7)
    for place, run in enumerate(runs):
        rows = [_neighbour_row(row, i, most_neighbours) for i, row in enumerate(run.neighbours[:most_rows])]
        if rows:
            blocks += [named(run, place, runs), tag("div", *rows, class_="gallery near")]
    explained = (
        "First the query, then the images whose features are nearest, with their distance. A tick: equal labels."
    )
    return section("Nearest neighbours", *blocks, explained=explained) if blocks else None


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _neighbour_row(row: NeighbourRow, place: int, most: int) -> Markup:
    cells = [_cell(row.query, row.label or "query", f"query {place + 1}")]
    for near in row.neighbours[:most]:
        same = near.label is not None and near.label == row.label
        distance = "" if math.isnan(near.distance) else figure(near.distance, 2)
        caption = " ".join(filter(None, (distance, near.label, "✓" if same else "")))
        cells.append(_cell(near.image, caption, f"neighbour of query {place + 1}", "same" if same else None))
    return _strip(cells, 1 + min(most, len(row.neighbours)))


def _cell(path: Path | None, caption: str, alt: str, class_: str | None = None) -> Markup:
    return tag("figure", picture(path, f"{alt}: {caption}"), tag("figcaption", caption), class_=class_)


def _strip(cells: Sequence[Markup], columns: int) -> Markup:
    return tag("div", *cells, class_="strip", style=f"--columns:{columns}")


def _epoch(at: ProbeEpoch) -> str:
    if math.isnan(at.epoch):
        return f"step {at.step}"
    return f"epoch {brief(round(at.epoch, 1))}" if at.epoch >= 1 else f"epoch {at.epoch:.2g}"


def _how_to_read(run: Run) -> Markup:
    note = f" {run.probes.note}" if run.probes.note else ""
    if not run.probes.norm_pix:
        return tag("span", f"Predictions are pixels.{note}")
    label = tag("strong", "Norm-pix: ")
    told = (
        "each patch is predicted relative to its own mean and standard deviation. To be viewable, it is shown with "
        "the mean and the standard deviation of the true patch, which the model never saw: judge the structure, "
        f"not the brightness.{note}"
    )
    return tag("span", label, told)
