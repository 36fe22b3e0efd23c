"""Line charts as inline SVG: light, crisp at any size, readable without script, with a read-out where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .markup import Markup, figure, tag
from .style import PALETTE

NUM_COLOURS = 7
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 450, 12, 226  # the plot's edges inside the picture
_MOST_POINTS = 400
_HEAD, _KEYS = 34, 34  # pixels for the title of a chart in a file of its own, and for its keys
_ALONE = (
    f"{PALETTE}text{{font:14px system-ui,sans-serif;fill:var(--soft)}}.title{{fill:var(--ink)}}"
    ".grid{stroke:var(--line)}.axis,.tick{stroke:var(--soft)}.cursor{display:none}"
)


@dataclass(frozen=True)
class Line:
    """One line of a chart. `noisy` values are drawn thin below a thick smoothed line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    noisy: bool = False
    is_dashed: bool = False

    @property
    def slot(self) -> str:
        """The CSS class of its colour."""
        return f"s{self.colour % NUM_COLOURS}"


@dataclass(frozen=True)
class Axis:
    """Values on an axis of pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        low, high = self.low, self.high
        if self.is_log:
            low, high, values = math.log(low), math.log(high), np.log(np.maximum(values, 1e-300))
        return self.start + (values - low) / (high - low) * (self.end - self.start)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "epoch",
    note: str = "",
    is_log: bool = False,
    offers_log: bool = False,
    from_zero: bool = False,
) -> Markup | None:
    """A figure with a title, axes, the lines and their legend; None where no line has a finite value.

    `offers_log` adds a switch between a linear and a logarithmic axis.
    """
    finite = [(line, *_finite(line, is_log)) for line in lines]
    if not (drawn := [(line, x, y) for line, x, y in finite if len(x)]):
        return None
    pictures = [_svg(title, drawn, x_label, is_log, from_zero)]
    switch = None
    if offers_log and all((y > 0).all() for _, _, y in drawn):
        pictures.append(_svg(title, drawn, x_label, not is_log, from_zero))
        switch = tag("label", tag("input", type="checkbox"), " log scale", class_="switch")
    legend = tag("div", *(_name(line) for line, _, _ in drawn), class_="legend") if len(drawn) > 1 else None
    caption = tag("figcaption", tag("strong", title), tag("span", note, class_="aside") if note else None, switch)
    return tag("figure", caption, legend, *pictures, class_="chart")


def chart_file(charts: Sequence[tuple[str, Sequence[Line]]], *, x_label: str = "epoch", is_log_x: bool = False) -> str:
    """An SVG for a page or a paper: charts side by side, each with its title, and below them the keys of all lines.

    With `is_log_x` the horizontal axis is logarithmic: values of x must be above 0.
    Raises ValueError for a chart without a finite value, and for values of x that such an axis cannot show.
    """
    marks: list[Markup] = []
    for place, (title, lines) in enumerate(charts):
        drawn = [(line, *_finite(line, False)) for line in lines]
        if is_log_x and any((x <= 0).any() for _, x, _ in drawn):
            raise ValueError(f"the chart {title!r} has values of x that are not above 0, for a logarithmic axis")
        if not any(len(x) for _, x, _ in drawn):
            raise ValueError(f"the chart {title!r} has no values")
        box = {"x": WIDTH * place, "y": _HEAD, "width": WIDTH, "height": HEIGHT}
        marks.append(tag("text", title, class_="title", x=WIDTH * place + LEFT, y=23))
        marks.append(_svg(title, [d for d in drawn if len(d[1])], x_label, False, False, is_log_x, **box))
    keys = {line.name: line for _, lines in charts for line in lines}
    width, height = WIDTH * len(charts) + 8, _HEAD + HEIGHT + _KEYS
    step = (width - LEFT) / len(keys)
    for place, (name, line) in enumerate(keys.items()):
        x, y, dash = LEFT + place * step, height - 12, " dash" if line.is_dashed else ""
        marks.append(tag("line", class_=f"line {line.slot}{dash}", x1=x, x2=x + 24, y1=y - 4, y2=y - 4))
        marks.append(tag("text", name, x=x + 30, y=y))
    ground = tag("rect", width=width, height=height, fill="var(--bg)")
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return f"{tag('svg', tag('style', Markup(_ALONE)), ground, *marks, xmlns='http://www.w3.org/2000/svg', **size)}\n"


def _name(line: Line) -> Markup:
    return tag("span", tag("i", class_="dash" if line.is_dashed else None), line.name, class_=f"key {line.slot}")


def smoothed(y: Float[np.ndarray, " n"], half_width: int) -> Float[np.ndarray, " n"]:
    """A moving straight-line fit: a centred average inside, and at the ends bent by no single value."""
    places = np.arange(len(y))
    first, last = np.maximum(places - half_width, 0), np.minimum(places + half_width, len(y) - 1)

    def mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        means: np.ndarray = (total[last + 1] - total[first]) / (last - first + 1)
        return means

    middle, variance = (first + last) / 2, ((last - first + 1) ** 2 - 1) / 12
    slope = (mean(places * y) - middle * mean(y)) / np.maximum(variance, 1e-12)
    line: np.ndarray = mean(y) + slope * (places - middle)
    return line


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis: 1, 2, 5 times powers of ten, fewer over many decades."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low) > 3
    stride = max(1, round(len(powers) / 6))
    factors = (1,) if wide else (1, 2, 5)
    ticks = [float(f"{m}e{p}") for p in powers for m in factors if not wide or p % stride == 0]
    ticks = [t for t in ticks if low <= t <= high]
    return ticks if len(ticks) >= 3 else nice_ticks(low, high)


def _finite(line: Line, is_log: bool) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    shown = np.isfinite(x) & np.isfinite(y) & ((y > 0) if is_log else True)
    return x[shown], y[shown]


def _range(values: Float[np.ndarray, " n"], is_log: bool, from_zero: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if is_log:
        margin = max((high / low) ** 0.05, 1.05)
        return low / margin, high * margin
    low = min(low, 0.0) if from_zero else low
    margin = max((high - low) * 0.06, abs(high) * 1e-3) or 1.0  # ticks of an almost flat line still differ
    return low if from_zero and low == 0 else low - margin, high + margin


def _svg(
    title: str,
    drawn: Sequence[tuple[Line, np.ndarray, np.ndarray]],
    x_label: str,
    is_log: bool,
    from_zero: bool,
    is_log_x: bool = False,
    **place: float,
) -> Markup:
    all_x, all_y = (np.concatenate([d[i] for d in drawn]) for i in (1, 2))
    x_low, x_high = float(all_x.min()), float(all_x.max())
    across = Axis(x_low, x_high if x_high > x_low else x_low + 1, LEFT, RIGHT, is_log_x)
    up = Axis(*_range(all_y, is_log, from_zero), BOTTOM, TOP, is_log)
    ranges = "; ".join(f"{line.name} from {figure(y[0])} to {figure(y[-1])}" for line, _, y in drawn)
    return tag(
        "svg",
        tag("title", f"{title} over {x_label}: {ranges}"),
        *_axes(across, up, x_label),
        *(element for line, x, y in drawn for element in _paths(line, across, up, x, y)),
        tag("line", class_="cursor", y1=TOP, y2=BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="log" if is_log else "linear",
        data_x=f"{across.low} {across.high} {across.start} {across.end}",
        data_y=f"{up.low} {up.high} {up.start} {up.end}",
        data_label=x_label,
        **place,
    )


def _axes(across: Axis, up: Axis, x_label: str) -> list[Markup]:
    y_ticks = log_ticks(up.low, up.high) if up.is_log else nice_ticks(up.low, up.high)
    x_ticks = log_ticks(across.low, across.high) if across.is_log else nice_ticks(across.low, across.high, 6)
    elements = []
    for value, y in zip(y_ticks, up(np.array(y_ticks)), strict=True):
        elements.append(tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"))
        elements.append(tag("text", _short(value), x=LEFT - 8, y=f"{y + 4:.1f}", text_anchor="end"))
    for value, x in zip(x_ticks, across(np.array(x_ticks)), strict=True):
        elements.append(tag("line", class_="tick", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=BOTTOM, y2=BOTTOM + 4))
        elements.append(tag("text", _short(value), x=f"{x:.1f}", y=BOTTOM + 18, text_anchor="middle"))
    elements.append(tag("line", class_="axis", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM))
    elements.append(tag("text", x_label, x=(LEFT + RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="label"))
    return elements


def _short(value: float) -> str:
    """A tick's value in few characters."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _paths(line: Line, across: Axis, up: Axis, x: np.ndarray, y: np.ndarray) -> list[Markup]:
    classes = f"line {line.slot}" + (" dash" if line.is_dashed or line.colour >= NUM_COLOURS else "")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    elements = []
    if line.noisy and len(x) > 8:
        elements.append(tag("path", d=_path(across(x), up(y)), class_=f"raw {line.slot}"))
        y = smoothed(y, max(1, len(y) // 40))
    elif len(x) <= 30:
        places = zip(across(x), up(y), strict=True)
        elements += [tag("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r=2.6, class_=f"dot {line.slot}") for a, b in places]
    elements.append(tag("path", d=_path(across(x), up(y)), class_=classes, data_name=line.name))
    return elements


def _path(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> str:
    """The points as path data; of very many, the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) > _MOST_POINTS:
        stretches = np.array_split(np.arange(len(x)), _MOST_POINTS // 2)
        extremes = sorted({int(i) for s in stretches for i in (s[y[s].argmin()], s[y[s].argmax()])} | {0, len(x) - 1})
        x, y = x[extremes], y[extremes]
    return "M" + "L".join(f"{a:.1f} {b:.2f}" for a, b in zip(x, y, strict=True))
