"""One picture of many: panels with captions in aligned blocks, and below them the keys of their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .lettering import lettered
from .pictures import NO_TRUTH, Picture, Ramp, class_colours

WIDTH = 1280
_MARGIN, _GAP, _CAPTION, _TITLE, _BETWEEN = 18, 6, 19, 26, 20
_GROUND, _INK, _SOFT, _FAINT = (251, 250, 248), (29, 31, 36), (102, 107, 118), (236, 233, 227)
_BAR = (220, 12)


@dataclass(frozen=True)
class Panel:
    """A picture with a caption above it; without a picture, an empty place that says why."""

    caption: str
    picture: Picture | None
    why: str = ""


@dataclass(frozen=True)
class PanelBlock:
    """The pictures of one sample: rows of panels, and beside them a `lead` as high as all rows where there is one."""

    title: str
    rows: Sequence[Sequence[Panel]]
    lead: Panel | None = None


@dataclass(frozen=True)
class Bar:
    """The key of a colour ramp: values from `low` to `high`, as text."""

    name: str
    ramp: Ramp
    low: str
    high: str

    def to_dict(self) -> dict[str, Any]:
        stops = self.ramp(np.linspace(0, 1, 9)).tolist()
        return {"name": self.name, "low": self.low, "high": self.high, "stops": stops}


@dataclass(frozen=True)
class Legend:
    """The key of class colours: `places` are the ids that are shown, of `count` classes, -1 for no class."""

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


@dataclass(frozen=True)
class Sheet:
    """What is on a sheet: blocks of panels, the keys of their colours, and notes on how to read them."""

    title: str
    blocks: Sequence[PanelBlock]
    keys: Sequence[Key] = ()
    notes: Sequence[str] = ()

    def draw(self) -> Picture:
        """The sheet as one picture, 1280 pixels wide."""
        return draw_sheet(self.title, self.blocks, self.keys, self.notes)


def draw_sheet(title: str, blocks: Sequence[PanelBlock], keys: Sequence[Key], notes: Sequence[str]) -> Picture:
    """The blocks one below the other on a sheet that is 1280 pixels wide; all panels have one size."""
    shapes = [p.picture.shape for b in blocks for row in b.rows for p in row if p.picture is not None]
    ratio = max((shape[0] / shape[1] for shape in shapes), default=1.0)
    side = min(_side(block, ratio) for block in blocks)
    height = round(side * ratio)
    lines = [line for note in notes for line in _wrapped(note, WIDTH - 2 * _MARGIN)]
    keyed = _rows_of(keys)
    total = 2 * _MARGIN + 34 + sum(_TITLE + len(b.rows) * (_CAPTION + height + _GAP) + _BETWEEN for b in blocks)
    sheet = _Canvas(total + len(keyed) * 24 + len(lines) * 19)
    sheet.write(_MARGIN, _MARGIN, title, 19, _INK, WIDTH - 2 * _MARGIN)
    y = _MARGIN + 34
    for block in blocks:
        y = sheet.add_block(block, y, side, height)
    for key_row in keyed:
        for x, key in key_row:
            sheet.add_key(key, x, y)
        y += 24
    for text in lines:
        sheet.write(_MARGIN, y + 4, text)
        y += 19
    return np.asarray(sheet.image)


def _side(block: PanelBlock, ratio: float) -> int:
    """The width of a panel with which a block fills the sheet."""
    columns = max(map(len, block.rows))
    room = float(WIDTH - 2 * _MARGIN - (columns - 1) * _GAP)
    if block.lead is not None:
        columns += len(block.rows)
        room -= _GAP + (len(block.rows) - 1) * (_CAPTION + _GAP) / ratio
    return int(room / columns)


class _Canvas:
    """An image that is drawn on; every method takes the upper left corner of what it adds."""

    def __init__(self, height: int):
        self.image = Image.new("RGB", (WIDTH, height), _GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def write(
        self, x: int, y: int, text: str, size: int = 13, colour: tuple[int, int, int] = _SOFT, most: int = WIDTH
    ) -> None:
        """A line of text, cut where it is wider than `most` pixels."""
        if _wide(text, size) > most:
            while text and _wide(text + "…", size) > most:
                text = text[:-1]
            text += "…"
        text, font = lettered(text, size)
        self.draw.text((x, y), text, fill=colour, font=font)

    def add_block(self, block: PanelBlock, y: int, side: int, height: int) -> int:
        """The title of a block and its panels; returns where the next block begins."""
        self.draw.line((_MARGIN, y, WIDTH - _MARGIN, y), fill=_FAINT)
        self.write(_MARGIN, y + 5, block.title, 15, _INK, WIDTH - 2 * _MARGIN)
        y += _TITLE
        left, row_height = _MARGIN, _CAPTION + height + _GAP
        if block.lead is not None:
            high = len(block.rows) * row_height - _CAPTION - _GAP  # its lower edge is that of the last row
            wide = round(high * side / height)
            self.add_panel(block.lead, left, y, wide, high)
            left += wide + _GAP
        for row in block.rows:
            for place, panel in enumerate(row):
                self.add_panel(panel, left + place * (side + _GAP), y, side, height)
            y += row_height
        return y + _BETWEEN

    def add_panel(self, panel: Panel, x: int, y: int, width: int, height: int) -> None:
        self.write(x, y + 1, panel.caption, most=width)
        y += _CAPTION
        if panel.picture is None:
            self.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_FAINT)
            self.write(x + 8, y + height // 2 - 8, panel.why, most=width - 16)
            return
        rows, columns = panel.picture.shape[:2]
        scale = min(width / columns, height / rows)
        size = max(1, round(columns * scale)), max(1, round(rows * scale))
        way = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS  # enlarged pixels stay sharp
        self.image.paste(Image.fromarray(panel.picture).resize(size, way), (x, y))

    def add_key(self, key: Key, x: int, y: int) -> None:
        if key.name:
            self.write(x, y + 2, key.name, colour=_INK)
            x += _wide(key.name) + 10
        if isinstance(key, Bar):
            self.write(x, y + 2, key.low)
            x += _wide(key.low) + 8
            ramp = key.ramp(np.broadcast_to(np.linspace(0, 1, _BAR[0]), _BAR[::-1]))
            self.image.paste(Image.fromarray(ramp), (x, y + 5))
            self.write(x + _BAR[0] + 8, y + 2, key.high)
            return
        for colour, name in zip(key.colours, key.names, strict=True):
            self.draw.rectangle((x, y + 5, x + 12, y + 17), fill=colour)
            self.write(x + 18, y + 2, name)
            x += _wide(name) + 30


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
    name = _wide(key.name) + 10 if key.name else 0
    if isinstance(key, Bar):
        return name + _wide(key.low) + _wide(key.high) + _BAR[0] + 16
    return name + sum(_wide(n) + 30 for n in key.names)


def _wide(text: str, size: int = 13) -> int:
    text, font = lettered(text, size)
    return round(font.getlength(text))


def _wrapped(text: str, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _wide(longer) > most:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
