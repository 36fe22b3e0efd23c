"""Names in pictures, whatever their script: no letter is drawn as a box."""

from __future__ import annotations

import numpy as np
import pytest

import unveil.reporting.lettering as lettering
from unveil.reporting.figures import Panel, PanelBlock, draw_sheet
from unveil.reporting.lettering import BUNDLED, lettered


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lettering, "FOLDERS", ())
    lettering._of_machine.cache_clear()
    lettering._place_for.cache_clear()
    yield
    lettering._of_machine.cache_clear()
    lettering._place_for.cache_clear()


@pytest.mark.parametrize("name", ["café", "Żółw", "кошка", "γάτα", "قطة", "חתול", "1 × 2 – ±"])
def test_the_bundled_font_has_the_letters(name: str, no_other_fonts):
    text, font = lettered(name, 13)
    assert text == name
    assert font.path == str(BUNDLED)


def test_letters_without_a_font_become_code_points(no_other_fonts):
    assert lettered("猫 1", 13)[0] == "U+732B 1"
    assert lettered("बिल्ली", 13)[0].startswith("U+092CU+093F")
    first, second = (np.asarray(sheet(name)) for name in ("猫", "狗"))
    assert (first != second).any(), "two names are told apart"


def test_ascii_is_drawn_as_ever():
    text, font = lettered("image_1.png", 13)
    assert text == "image_1.png"
    assert font.getname()[0] == "Aileron"


def sheet(name: str) -> np.ndarray:
    return draw_sheet("run", [PanelBlock(name, [[Panel("image", np.zeros((8, 8, 3), np.uint8))]])], [], [])
