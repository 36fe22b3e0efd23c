"""The pictures of a report: reconstructions, attention maps, nearest neighbours. One function a section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from .markup import Markup, brief, figure, join, picture, tag
from .run import NeighbourRow, ProbeEpoch, ProbeFiles, RunRecord
from .sections import Runs, named, section

T = TypeVar("T")


def reconstructions(runs: Runs) -> Markup | None:
    """A row per probe: original, hidden, then what the model made of it at several epochs."""
    blocks: list[Markup | None] = []
    most_probes, most_epochs = (9, 6) if len(runs) == 1 else (4, 5)
    for place, run in enumerate(runs):
        epochs = evenly_spaced(run.probes.epochs, most_epochs)
        rows = []
        for probe, name in list(enumerate(run.probes.names))[:most_probes]:
            seen = [(e, e.items[probe]) for e in epochs if probe in e.items and _predicted(e.items[probe])]
            if seen:
                last = seen[-1][1]
                cells = [_cell(last.original, "original", name), _cell(last.hidden, "hidden", name)]
                cells += [_cell(_predicted(files), _epoch(e), f"{name}, predicted") for e, files in seen]
                rows.append(_strip(cells, len(epochs) + 2))
        if rows:
            told = tag("p", _how_to_read(run), class_="remark")
            blocks += [named(run, place, runs), tag("div", *rows, class_="gallery"), colour_keys(run), told]
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
        epochs = evenly_spaced(
            [e for e in run.probes.epochs if any(f.attention for f in e.items.values())], most_epochs
        )
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


def guidance(runs: Runs) -> Markup | None:
    """Who looks where as training goes on, the mask that comes of it, and what other ways of drawing would hide."""
    blocks: list[Markup | None] = []
    most_probes, most_epochs = (2, 6) if len(runs) == 1 else (1, 5)
    for place, run in enumerate(runs):
        epochs = evenly_spaced([e for e in run.probes.epochs if any(map(_is_guided, e.items.values()))], most_epochs)
        strips: list[Markup] = []
        for probe, name in enumerate(run.probes.names):
            seen = [(e, e.items[probe]) for e in epochs if probe in e.items and _is_guided(e.items[probe])]
            if not seen or len(strips) >= 5 * most_probes:
                continue
            last = seen[-1][1]
            draws = [(way.removeprefix("draw "), p) for way, p in last.more.items() if way.startswith("draw ")]
            cells = [_cell(last.original, "original, drawn as", name)]
            strips.append(_strip([*cells, *(_cell(p, way, f"{name}, drawn") for way, p in draws)], len(draws) + 1))
            kinds: list[tuple[str, list[Path | None]]] = [
                ("teacher", [files.more.get("teacher") for _, files in seen]),
                ("student", [files.attention for _, files in seen]),
                ("blend", [files.more.get("blend") for _, files in seen]),
                ("mask", [files.hidden for _, files in seen]),
            ]
            for kind, paths in kinds:
                if any(paths):
                    cells = [tag("div", kind, class_="rowname")]
                    cells += [_cell(p, _epoch(e), f"{name}, {kind}") for (e, _), p in zip(seen, paths, strict=True)]
                    strips.append(_strip(cells, len(epochs) + 1))
        if strips:
            blocks += [named(run, place, runs), tag("div", *strips, class_="gallery told")]
    explained = (
        "An image and what each way of drawing would hide of it at last; below, what the frozen teacher attends to, "
        "what the student does, the blend of both, and the mask that was drawn, as training went on."
    )
    return section("Guidance", *blocks, explained=explained) if blocks else None


def across_modalities(runs: Runs) -> Markup | None:
    """What is predicted of one map when another one alone is given."""
    blocks: list[Markup | None] = []
    most_rows, most_epochs = (12, 6) if len(runs) == 1 else (6, 5)
    for place, run in enumerate(runs):
        epochs = evenly_spaced(
            [e for e in run.probes.epochs if any(_given(f.more) for f in e.items.values())], most_epochs
        )
        strips: list[Markup] = []
        for probe, name in enumerate(run.probes.names):
            seen = [(e, e.items[probe]) for e in epochs if probe in e.items and _given(e.items[probe].more)]
            for given in _given(seen[-1][1].more) if seen else ():
                cells = [_cell(seen[-1][1].original, f"{name.rpartition(' · ')[2]} {given}", name)]
                cells += [_cell(f.more.get(given), _epoch(e), f"{name}, {given} alone") for e, f in seen]
                strips.append(_strip(cells, len(epochs) + 1))
        if strips:
            strips = strips[:most_rows]
            blocks += [named(run, place, runs), tag("div", *strips, class_="gallery told"), colour_keys(run)]
    explained = "One map is given whole and all others are hidden: first the truth, then what the model says of it."
    return section("Across modalities", *blocks, explained=explained) if blocks else None


def colour_keys(run: RunRecord) -> Markup | None:
    """What the colours of measured maps and of classes mean."""
    told = []
    for key in run.probes.keys:
        name, classes, colours = str(key.get("name", "")), key.get("classes"), key.get("colours")
        if isinstance(classes, list) and isinstance(colours, list):
            spots = [
                tag("span", tag("i", class_="swatch", style=f"background:{_rgb(c)}"), str(word))
                for word, c in zip(classes, colours, strict=False)
            ]
            told.append(tag("p", tag("strong", name), *spots, class_="classes"))
        elif isinstance(stops := key.get("stops"), list):
            ramp = f"background:linear-gradient(90deg,{','.join(map(_rgb, stops))})"
            bar = (f"{key.get('low', '')} ", tag("i", class_="ramp", style=ramp), f" {key.get('high', '')}")
            told.append(tag("p", tag("strong", name), tag("span", *bar, class_="key"), class_="classes"))
    return tag("div", *told) if told else None


def _rgb(colour: object) -> str:
    """A colour of an index as CSS; black for what is none, for the index is read from a file."""
    values = colour if isinstance(colour, list) and len(colour) == 3 else [0, 0, 0]
    return f"rgb({' '.join(str(int(v)) if isinstance(v, int | float) and 0 <= v <= 255 else '0' for v in values)})"


def _predicted(files: ProbeFiles) -> Path | None:
    """What the model made of the hidden patches, or else how far off its features are."""
    return files.reconstructed or files.more.get("features")


def _is_guided(files: ProbeFiles) -> bool:
    return any(name.startswith("draw ") for name in files.more)


def _given(more: Mapping[str, Path]) -> list[str]:
    return [name for name in more if name.startswith("from ")]


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


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
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


def _how_to_read(run: RunRecord) -> Markup:
    note = f" {run.probes.note}" if run.probes.note else ""
    if any("features" in files.more for epoch in run.probes.epochs for files in epoch.items.values()):
        label = tag("strong", "Features: ")
        told = (
            "this model predicts no pixels, so of its predictions no picture can be made. Hidden patches have the "
            "colour of the distance between predicted and true features (1 - cos): dark where they point the same "
            f"way, light where they have nothing in common.{note}"
        )
        return tag("span", label, told)
    if not run.probes.norm_pix:
        return tag("span", f"Predictions are pixels.{note}")
    label = tag("strong", "Norm-pix: ")
    told = (
        "each patch is predicted relative to its own mean and standard deviation. To be viewable, it is shown with "
        "the mean and the standard deviation of the true patch, which the model never saw: judge the structure, "
        f"not the brightness.{note}"
    )
    return tag("span", label, told)
