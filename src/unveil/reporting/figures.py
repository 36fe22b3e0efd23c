"""One picture of many: panels with captions in aligned blocks, and below them what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import NO_TRUTH, Picture, Ramp, class_colours

WIDTH = 1280
_MARGIN, _GAP, _CAPTION, _TITLE, _BETWEEN = 18, 6, 19, 26, 20
_GROUND, _INK, _SOFT, _FAINT = (251, 250, 248), (29, 31, 36), (102, 107, 118), (236, 233, 227)
_BAR = (220, 12)


@dataclass(frozen=True)
class Panel:
    """A picture with a word above it; without a picture, a place that says why it is empty."""

    caption: str
    picture: Picture | None
    why: str = ""


@dataclass(frozen=True)
class PanelBlock:
    """What is shown of one sample: rows of panels and, where there is a `lead`, one as high as all rows beside them."""

    title: str
    rows: Sequence[Sequence[Panel]]
    lead: Panel | None = None


@dataclass(frozen=True)
class Bar:
    """What a colour of a ramp means: values from `low` to `high`, as they are to be written."""

    name: str
    ramp: Ramp
    low: str
    high: str

    def to_dict(self) -> dict[str, Any]:
        stops = self.ramp(np.linspace(0, 1, 9)).tolist()
        return {"name": self.name, "low": self.low, "high": self.high, "stops": stops}


@dataclass(frozen=True)
class Legend:
    """What the colours of classes mean, by their names; `places` are those that are shown, of `count` classes, -1 for
    none of them."""

    name: str
    count: int
    places: Sequence[int]
    names: Sequence[str]

    @property
    def colours(self) -> list[tuple[int, ...]]:
        palette = class_colours(self.count).tolist()
        return [tuple(palette[place]) if place >= 0 else NO_TRUTH for place in self.places]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "classes": list(self.names), "colours": self.colours}


Key = Bar | Legend


def draw_sheet(title: str, blocks: Sequence[PanelBlock], keys: Sequence[Key], notes: Sequence[str]) -> Picture:
    """The blocks one below the other on a sheet that is 1280 pixels wide; all panels have one size."""
    shapes = [p.picture.shape for b in blocks for row in b.rows for p in row if p.picture is not None]
    ratio = max((shape[0] / shape[1] for shape in shapes), default=1.0)
    side = min(_side(block, ratio) for block in blocks)
    height = round(side * ratio)
    row_height = _CAPTION + height + _GAP
    lines = [line for note in notes for line in _wrapped(note, WIDTH - 2 * _MARGIN)]
    keyed = _rows_of(keys)
    total = 2 * _MARGIN + 34 + sum(_TITLE + len(b.rows) * row_height + _BETWEEN for b in blocks)
    total += len(keyed) * 24 + len(lines) * 19
    sheet = Image.new("RGB", (WIDTH, total), _GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, _MARGIN), title, 19, _INK, WIDTH - 2 * _MARGIN)
    y = _MARGIN + 34
    for block in blocks:
        y = _block(sheet, draw, block, y, side, height)
    for key_row in keyed:
        for x, key in key_row:
            _key(sheet, draw, key, x, y)
        y += 24
    for text in lines:
        _write(draw, (_MARGIN, y + 4), text, 13, _SOFT, WIDTH)
        y += 19
    return np.asarray(sheet)


def _side(block: PanelBlock, ratio: float) -> int:
    """The width of a panel with which a block fills the sheet."""
    columns = max(map(len, block.rows))
    room = float(WIDTH - 2 * _MARGIN - (columns - 1) * _GAP)
    if block.lead is not None:
        columns += len(block.rows)
        room -= _GAP + (len(block.rows) - 1) * (_CAPTION + _GAP) / ratio
    return int(room / columns)


def _block(sheet: Image.Image, draw: ImageDraw.ImageDraw, block: PanelBlock, y: int, side: int, height: int) -> int:
    draw.line((_MARGIN, y, WIDTH - _MARGIN, y), fill=_FAINT)
    _write(draw, (_MARGIN, y + 5), block.title, 15, _INK, WIDTH - 2 * _MARGIN)
    y += _TITLE
    count, row_height = len(block.rows), _CAPTION + height + _GAP
    left = _MARGIN
    if block.lead is not None:
        high = count * row_height - _CAPTION - _GAP  # its lower edge is that of the last row
        wide = round(high * side / height)
        _panel(sheet, draw, block.lead, left, y, wide, high)
        left += wide + _GAP
    for row in block.rows:
        for place, panel in enumerate(row):
            _panel(sheet, draw, panel, left + place * (side + _GAP), y, side, height)
        y += row_height
    return y + _BETWEEN


def _panel(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, x: int, y: int, width: int, height: int
) -> None:
    _write(draw, (x, y + 1), panel.caption, 13, _SOFT, width)
    y += _CAPTION
    if panel.picture is None:
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_FAINT)
        _write(draw, (x + 8, y + height // 2 - 8), panel.why, 13, _SOFT, width - 16)
        return
    rows, columns = panel.picture.shape[:2]
    scale = min(width / columns, height / rows)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    way = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS  # few pixels are to be seen as such
    sheet.paste(Image.fromarray(panel.picture).resize(size, way), (x, y))


def _rows_of(keys: Sequence[Key]) -> list[list[tuple[int, Key]]]:
    """The keys with their places from the left, as many in a line as fit; a long legend takes several lines."""
    lines: list[list[tuple[int, Key]]] = []
    x = WIDTH
    for key in chain.from_iterable(map(_split, keys)):
        wide = _width_of(key)
        if x + wide > WIDTH - _MARGIN:
            lines.append([])
            x = _MARGIN
        lines[-1].append((x, key))
        x += wide + 28
    return lines


def _split(key: Key) -> list[Key]:
    """A legend that is too long for a line, as several."""
    if isinstance(key, Bar) or _width_of(key) <= WIDTH - 2 * _MARGIN:
        return [key]
    half = len(key.places) // 2
    first = Legend(key.name, key.count, key.places[:half], key.names[:half])
    return [*_split(first), *_split(Legend("", key.count, key.places[half:], key.names[half:]))]


def _width_of(key: Key) -> int:
    name = _wide(key.name, 13) + 10 if key.name else 0
    if isinstance(key, Bar):
        return name + _wide(key.low, 13) + _wide(key.high, 13) + _BAR[0] + 16
    return name + sum(_wide(n, 13) + 30 for n in key.names)


def _key(sheet: Image.Image, draw: ImageDraw.ImageDraw, key: Key, x: int, y: int) -> None:
    if key.name:
        _write(draw, (x, y + 2), key.name, 13, _INK, WIDTH)
        x += _wide(key.name, 13) + 10
    if isinstance(key, Bar):
        _write(draw, (x, y + 2), key.low, 13, _SOFT, WIDTH)
        x += _wide(key.low, 13) + 8
        ramp = key.ramp(np.broadcast_to(np.linspace(0, 1, _BAR[0]), _BAR[::-1]))
        sheet.paste(Image.fromarray(ramp), (x, y + 5))
        _write(draw, (x + _BAR[0] + 8, y + 2), key.high, 13, _SOFT, WIDTH)
        return
    for colour, name in zip(key.colours, key.names, strict=True):
        draw.rectangle((x, y + 5, x + 12, y + 17), fill=colour)
        _write(draw, (x + 18, y + 2), name, 13, _SOFT, WIDTH)
        x += _wide(name, 13) + 30


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # comes with Pillow: the picture is the same on every machine


def _wide(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], most: int
) -> None:
    """A line of text, cut where it is wider than `most` pixels."""
    if _wide(text, size) > most:
        while text and _wide(text + "…", size) > most:
            text = text[:-1]
        text += "…"
    draw.text(at, text, fill=colour, font=_font(size))


def _wrapped(text: str, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _wide(longer, 13) > most:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
