"""HTML as values: plain text is escaped wherever it enters, so no name in a run can become markup."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ..runs.console import harmless, plural

_MOST_PIXELS = 1 << 25
_TAGS = re.compile(r"<[^>]*>")
_COMMAND, _FLAG = re.compile(r"(`[^`]+`)"), re.compile(r"((?<![\w-])--[a-z][a-z-]*[a-z](?: \d[\d.]*\b)?)")
_VOID = frozenset({"img", "meta", "input", "br"})


class Markup(str):
    """Text that is HTML already. Only the functions of this module make it."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Children that are not Markup are escaped, None is left out.

    An attribute's trailing underscore is dropped and the others become hyphens; None and False leave it out.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escaped(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{fragment(children)}</{name}>")


def _escaped(value: object) -> str:
    return html.escape(harmless(str(value)))


def fragment(children: Iterable[object]) -> Markup:
    """Children one after another, escaped unless they are Markup; None is left out."""
    return Markup("".join(c if isinstance(c, Markup) else _escaped(c) for c in children if c is not None))


def prose(text: str) -> Markup:
    """A sentence whose commands, in backquotes, and flags are set as code: a flag is never broken at its hyphens."""

    def flags(text: str, name: str) -> Markup:
        return fragment(tag(name, p, class_="flag") if i % 2 else p for i, p in enumerate(_FLAG.split(text)))

    parts = enumerate(_COMMAND.split(text))
    return fragment(tag("code", flags(p.strip("`"), "span")) if i % 2 else flags(p, "code") for i, p in parts)


def remark(text: object) -> Markup:
    """A paragraph of small print: a comment on what stands above or below it."""
    return tag("p", text, class_="remark")


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]], **attributes: object) -> Markup:
    """A table whose first column names its rows; too wide a one scrolls in its own box, on a phone it folds.

    A cell of a folded table has the head of its column beside it.
    """
    header = tag("tr", *(tag("th", h, scope="col") if h else tag("td") for h in head))
    labels = [html.unescape(_TAGS.sub("", str(h))) for h in head]

    def cells(row: Sequence[object]) -> Iterable[Markup]:
        return (tag("td", cell, data_label=label) for cell, label in zip(row[1:], labels[1:], strict=False))

    body = [tag("tr", tag("th", row[0], scope="row"), *cells(row)) for row in rows]
    whole = tag("table", tag("thead", header), tag("tbody", *body), **attributes)
    return tag("div", whole, class_="scroll", tabindex="0")


def figure(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and thousands separators; a dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if abs(value) >= 10 ** (digits - 1) and abs(value) < 1e9:
        return f"{value:,.0f}"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return f"{value:#.{digits}g}".rstrip(".")


def brief(value: float) -> str:
    """A number without trailing zeros: 30, 12.5."""
    return f"{value:,.4g}" if math.isfinite(value) and abs(value) < 1e4 else figure(value)


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def count(value: float) -> str:
    """A large count, rounded: 86.1 M."""
    for size, scale, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= size:
            return f"{brief(float(f'{value / scale:.3g}'))} {unit}"
    return brief(value)


def counted(value: float, noun: str) -> str:
    """A number with its noun: 1 epoch, 0.92 epochs."""
    return f"{brief(value)} {plural(noun, value if brief(value) != '1' else 1)}"


def picture(path: Path | None, alt: str, longest: int = 256) -> Markup:
    """An image with its bytes inside the page, small ones without loss, larger ones as JPEG; else a box that says so.

    `longest` bounds its longer side in pixels.
    """
    try:
        if path is None or not path.is_file():
            raise FileNotFoundError("no file named")
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError("no picture of a run is so large")
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return tag("span", "no picture", class_="gone", role="img", aria_label=f"{alt}: the picture cannot be read")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    small = max(image.size) <= 128
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=86, optimize=True)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return tag(
        "img", src=source, alt=alt, width=image.width, height=image.height,
        class_="pixels" if max(image.size) <= 96 else None,
    )  # fmt: skip
