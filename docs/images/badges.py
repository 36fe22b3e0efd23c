"""The README's badges, from pyproject.toml, so that they are true: python docs/images/badges.py."""

from __future__ import annotations

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
WIDTH, PAD = 6.6, 8  # pixels of a letter of 11 pixels, and beside a word


def texts() -> dict[str, tuple[str, str, str]]:
    """The word, the value and the colour of each badge, by the name of its file."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].replace(">=", "") + " or newer"
    return {
        "licence": ("licence", project["license"], "#1f6f43"),
        "python": ("Python", python, "#2b5b84"),
        "types": ("types", "py.typed, mypy", "#4a4a8a"),
    }


def badge(word: str, value: str, colour: str) -> str:
    """An SVG of two fields."""
    left, right = (round(len(text) * WIDTH) + 2 * PAD for text in (word, value))
    fields = [(0, left, "#555", word), (left, right, colour, value)]
    drawn = "".join(
        f'<rect x="{x}" width="{width}" height="20" fill="{fill}"/>'
        f'<text x="{x + width / 2:g}" y="14" textLength="{width - 2 * PAD}">{escape(text)}</text>'
        for x, width, fill, text in fields
    )
    size = f'width="{left + right}" height="20" viewBox="0 0 {left + right} 20"'
    style = 'fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11"'
    title = f"{escape(word)}: {escape(value)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{title}</title>'
        f'<clipPath id="r"><rect width="{left + right}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)" {style}>{drawn}</g></svg>\n'
    )


if __name__ == "__main__":
    for name, parts in texts().items():
        (HERE / f"badge-{name}.svg").write_text(badge(*parts))
