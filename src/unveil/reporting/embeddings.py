"""Sections on what features see: a map of many images, near-duplicates, outliers, and the patches of a few images."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .frames import SIDE
from .markup import Markup, figure, percent, picture, remark, tag
from .pictures import class_colours
from .run_files import mapping, mappings, number, picture_in, read_json
from .run_record import RunRecord
from .sections import Runs, by_run

MOST_IMAGES, MOST_CLASSES, MOST_SHOWN = 2000, 20, 6
_SHEET = 1500  # pixels of the longer side of the sheet of thumbnails in the page
_WIDTH, _HEIGHT, _EDGE = 1000, 620, 12


def data_map(runs: Runs) -> Markup | None:
    """All training images that were compared, by their features; the thumbnail of the one that is pointed at."""
    return by_run("Map of the images", runs, _map, _MAP_EXPLAINED)


_MAP_EXPLAINED = (
    "Each dot is a training image; near dots have similar features. Point at a dot, or step through them with the arrow"
    " keys, to see its image. Classes, where there are labels, were not used in training."
)


def _map(run: RunRecord) -> list[Markup | None]:
    if len((content := _content(run)).get("images", [])) < 3:
        return []
    images = content["images"]
    labels = sorted({str(image["label"]) for image in images if image.get("label") is not None})
    shown = labels if len(labels) <= MOST_CLASSES else []
    palette = [f"rgb({r} {g} {b})" for r, g, b in class_colours(max(1, len(shown))).tolist()]
    colour = dict(zip(shown, palette, strict=False))
    dots = []
    for i, image in enumerate(images):
        x, y = (
            _EDGE + number(v) * (size - 2 * _EDGE) for v, size in zip(image["place"], (_WIDTH, _HEIGHT), strict=True)
        )
        label = image.get("label")
        words = " · ".join(filter(None, (str(image.get("name", "")), None if label is None else str(label))))
        fill = colour.get(str(label), "var(--s0)")
        dots.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, style=f"fill:{fill}", data_i=i, data_name=words))
    svg = tag(
        "svg", tag("title", f"map of {len(images)} images by {content['method']}"), *dots,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", tabindex=0,
    )  # fmt: skip
    sheet = picture(content["sheet"], "thumbnails of all images", _SHEET)
    legend = [tag("span", tag("i", class_="swatch", style=f"background:{colour[label]}"), label) for label in shown]
    columns = content["columns"]
    size = {"data_columns": columns, "data_rows": -(-len(images) // columns)}
    return [
        tag("p", f"{len(images):,} images, placed by {content['method']}.", class_="remark"),
        tag("div", svg, tag("div", sheet, class_="sheet"), class_="map", **size),
        tag("p", *legend, class_="classes") if legend else None,
    ]


def data_oddities(runs: Runs) -> Markup | None:
    """Near-duplicates and outliers of the training images, by their features."""

    def content(run: RunRecord) -> list[Markup | None]:
        if not (read := _content(run)):
            return []
        pairs = [
            tag(
                "div", _image(run, read, i), _image(run, read, j),
                tag("figcaption", f"{_name(read, i)} and {_name(read, j)}, alike {percent(value)}"),
                class_="pair",
            )
            for i, j, value in read["duplicates"][:MOST_SHOWN]
        ]  # fmt: skip
        outliers = [
            tag("figure", _image(run, read, i), tag("figcaption", f"{_name(read, i)}, {figure(value, 2)} x"))
            for i, value in read["outliers"][:MOST_SHOWN]
        ]
        blocks = [tag("h3", "Near-duplicates"), tag("div", *pairs, class_="looks pairs")] if pairs else []
        none = tag("p", "No two images are near-duplicates.") if not pairs else None
        far = (
            [tag("h3", "Outliers"), tag("div", tag("div", *outliers, class_="strip"), class_="looks")]
            if outliers
            else []
        )
        return [none, *blocks, *far]

    explained = (
        "Near-duplicates are near by features, and their thumbnails correlate: leave one of them out, and never keep"
        " them on both sides of a split. Outliers are farthest from their five nearest images; beside them, how many"
        " times as far as the median image: often broken, blank, or of another kind."
    )
    return by_run("Near-duplicates and outliers", runs, content, explained)


def patch_features(runs: Runs) -> Markup | None:
    """Features of patches as colours, the likeness of a clicked patch, and the attention of all blocks and heads."""

    def content(run: RunRecord) -> list[Markup | None]:
        blocks: list[Markup | None] = []
        entries = mappings(read_json(run.path / "pictures" / "patches.json", []))
        if entries and not all(one.get("less_place") for one in entries):
            blocks.append(remark("In this run the features keep what their place adds, which is most of the colours."))
        for one in entries:
            if (codes := _codes(one)) is None:
                continue
            rows, columns = (int(number(v)) for v in one["grid"])
            folder, name = run.path / "pictures", str(one.get("name", ""))
            cells = {
                kind: picture(picture_in(folder, one.get(kind)), f"{name}: {words}", SIDE if kind != "heads" else 1024)
                for kind, words in (
                    ("original", "original"),
                    ("principal", "features as colours"),
                    ("heads", "attention"),
                )
            }
            canvas = tag("canvas", width=columns, height=rows, class_="likeness", aria_hidden="true")
            clicked = tag(
                "figure",
                tag("div", cells["original"], canvas, class_="clickable", tabindex=0, role="application",
                    aria_label=f"{name}: choose a patch with the arrow keys", data_codes=f"int8 {codes}",
                    data_width=int(number(one["width"])), data_grid=f"{rows} {columns}"),
                tag("figcaption", "click a patch: bright patches have similar features"),
            )  # fmt: skip
            principal = tag(
                "figure", cells["principal"], tag("figcaption", "features as colours: first three principal components")
            )
            heads = tag("figure", cells["heads"], tag("figcaption", "attention: a row a block, a column a head"))
            blocks += [tag("p", name, class_="metric"), tag("div", clicked, principal, heads, class_="patches")]
        return blocks if len(blocks) > 1 else []

    explained = (
        "Of whole images; from each feature is subtracted what training images have at that place on average. Colours"
        " are the first three principal components over all images shown: patches of one colour are alike to the"
        " encoder."
    )
    return by_run("Patches", runs, content, explained)


def _image(run: RunRecord, content: Mapping[str, Any], i: int) -> Markup:
    return picture(picture_in(run.path / "pictures", f"map{i}.png"), _name(content, i), SIDE)


def _name(content: Mapping[str, Any], i: int) -> str:
    return str(content["images"][i].get("name", i))


def _content(run: RunRecord) -> dict[str, Any]:
    """The map as far as it can be read; empty where it cannot be drawn."""
    content = mapping(read_json(run.path / "pictures" / "map.json", []))
    images = [one for one in mappings(content.get("images")) if _is_place(one.get("place"))]
    columns = number(content.get("columns"))
    if not (3 <= len(images) <= MOST_IMAGES and 1 <= columns <= MOST_IMAGES):
        return {}
    sheet: Path | None = picture_in(run.path / "pictures", content.get("sheet"))

    def numbered(of: object, places: int) -> list[tuple[Any, ...]]:
        """Rows of so many numbers of images and one value."""
        rows = []
        for row in of if isinstance(of, list) else []:
            values = [number(v) for v in row] if isinstance(row, list) and len(row) == places + 1 else []
            if values and all(v in range(len(images)) for v in values[:-1]) and math.isfinite(values[-1]):
                rows.append((*map(int, values[:-1]), values[-1]))
        return rows

    return {
        "method": str(content.get("method", "")), "columns": int(columns), "images": images, "sheet": sheet,
        "duplicates": numbered(content.get("duplicates"), 2), "outliers": numbered(content.get("outliers"), 1),
    }  # fmt: skip


def _is_place(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(0 <= number(v) <= 1 for v in value)


def _codes(one: Mapping[str, Any]) -> str | None:
    """The codes of an image's patches; None where they are not as many as its grid has patches."""
    grid, width, codes = one.get("grid"), number(one.get("width")), one.get("codes")
    if not (isinstance(grid, list) and len(grid) == 2 and isinstance(codes, str) and 1 <= width <= 64):
        return None
    rows, columns = map(number, grid)
    try:
        count = len(base64.b64decode(codes, validate=True))
    except (ValueError, binascii.Error):
        return None
    return codes if rows * columns * width == count and 1 <= rows <= 256 and 1 <= columns <= 256 else None
