"""The report on detection: curves and pairs of pictures from the results file, whatever stands in it."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from unveil.reporting.detections import detections
from unveil.reporting.run_record import Evaluation
from unveil.reporting.scores import evaluations


def png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Run:
    """What the section reads of a run."""

    def __init__(self, shown: object):
        self.name = "a"
        self.evaluations = [
            Evaluation("detect", "coco", {"box_ap": 0.4, "mask_ap": 0.3}, {"from scratch": {"box_ap": 0.2}}, "card",
                       {"box_ap": {"ball": 0.5}}, shown=shown)  # type: ignore[arg-type]
        ]  # fmt: skip


def test_curves_and_pictures_of_what_is_there_and_what_was_found_are_drawn():
    images = [
        {"name": f"{kind}.png", "kind": kind, "share": 0.5, "true": png(), "found": png()}
        for kind in ("spread", "worst")
    ]
    text = str(detections([Run({"curves": {"box": [1.0, 0.8, 0.2], "mask": [1.0, 0.5, 0.0]}, "images": images})]))
    assert text.count("data:image/png;base64,") == 4
    for words in (
        "precision of boxes",
        "precision of masks",
        "Test images",
        "The worst test images",
        "worst.png, F1 0.5",
    ):
        assert words in text
    scores = str(evaluations([Run({})]))
    assert "40" in scores
    assert "box AP of each class" in scores
    assert "box ap" not in scores
    assert 'class="pairs"' in text, "the true ones on the left, those found on the right, as it says"


@pytest.mark.parametrize(
    "shown",
    [{}, {"curves": 3, "images": "x"}, {"images": [{"kind": "spread", "true": 'iVBOR" onload="x', "found": "iVBOR"}]},
     {"images": [{"kind": "spread", "true": "http://x", "found": None}, 4]}],
)  # fmt: skip
def test_what_is_no_picture_is_left_out(shown):
    text = str(detections([Run(shown)]) or "")
    assert "<img" not in text
    assert "onload" not in text
