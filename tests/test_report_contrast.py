"""Text of a page stands out from its ground: WCAG 2.1, level AA, 4.5 to 1, light and dark."""

from __future__ import annotations

import re

import numpy as np
import pytest

from unveil.reporting.analyses import shaded
from unveil.reporting.style import PALETTE

LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]+);", block)) for block in PALETTE.partition("/* The lines")[0].split("@media")
)


def luminance(rgb: np.ndarray) -> float:
    share = np.asarray(rgb, float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def rgb(colour: str) -> np.ndarray:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)])


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_ink_on_every_ground(palette):
    for ink in ("ink", "soft", "ok", "note", "warning", "problem"):
        for ground in ("bg", "card", "faint"):
            assert contrast(rgb(palette[ink]), rgb(palette[ground])) >= 4.5, (ink, ground)
    assert contrast(rgb(palette["bg"]), rgb(palette["s0"])) >= 4.5, "the button that is chosen"


def test_numbers_on_coloured_cells():
    for shade in np.linspace(0, 1, 41):
        style = re.search(r"rgb\((\d+) (\d+) (\d+)\);color:(#\w+)", shaded(0.5, float(shade)))
        assert style is not None
        assert contrast(np.array(style.groups()[:3], int), rgb(style[4])) >= 4.5
