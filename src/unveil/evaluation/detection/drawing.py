"""Pictures of images with objects, true and found, for the report; and how well each image was done."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from ...data.decode import Unreadable
from ...data.detection.annotations import DetectionSet
from ...data.detection.masks import Window
from ...data.extras import optional
from ...modeling.types import to_float
from ...runs.console import harmless
from .average_precision import Found
from .ops import NEEDED

SIDE = 256  # pixels of the longer side of a picture in the report
SHOWN = 6  # images drawn because they are evenly spread, and as many because they are the worst
SURE = 0.3  # score from which a prediction is drawn and counted for an image
OVERLAP = 0.5  # of boxes, from which an object is found
COLOURS = ((230, 57, 70), (29, 128, 180), (42, 157, 143), (244, 162, 97), (131, 56, 236), (120, 144, 12))


def examples(test: DetectionSet, found: Mapping[int, Found]) -> list[dict[str, Any]]:
    """Some test images with what is there and what was found, as PNGs in base64: evenly spread ones, then the worst.

    `share` is the F1 score of an image: objects found at an overlap of one half among those there and those predicted.
    """
    numbers = sorted(found)
    scores = {number: image_f1(test, number, found[number]) for number in numbers}
    spread = numbers[:: max(1, len(numbers) // SHOWN)][:SHOWN]
    worst = sorted((number for number in numbers if number not in spread), key=lambda n: (scores[n], n))[:SHOWN]
    drawn = []
    for kind, chosen in (("spread", spread), ("worst", worst)):
        for number in chosen:
            try:
                pixels = to_float(test.sample(number).maps["rgb"])
            except Unreadable:  # it was readable a while ago
                continue
            picture = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
            picture = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture[:, :, :3]
            entry = {"name": harmless(test.files[number]), "kind": kind, "share": round(scores[number], 4)}
            truth, own = test.objects[number], found[number]
            size = Window(*test.sizes[number])
            masks = [None if mask is None else mask.bitmap(size) for mask in truth.masks]
            names = [
                test.classes[label] + " (crowd)" * bool(c) for label, c in zip(truth.labels, truth.crowd, strict=True)
            ]
            entry["true"] = draw(picture, truth.boxes, truth.labels, names, masks)
            rows = np.flatnonzero(own.scores >= SURE)
            named = [f"{test.classes[own.labels[row]]} {own.scores[row]:.0%}" for row in rows]
            entry["found"] = draw(picture, own.boxes[rows], own.labels[rows], named, _bitmaps(own, rows))
            drawn.append(entry)
    return drawn


def _bitmaps(found: Found, rows: ndarray) -> list[Bool[ndarray, "H W"] | None]:
    if found.masks is None:
        return [None] * len(rows)
    coder = optional("faster_coco_eval", NEEDED).mask
    return [coder.decode(found.masks[row]).astype(bool) for row in rows]


def draw(
    picture: UInt8[ndarray, "H W 3"],
    boxes: Float[ndarray, "N 4"],
    labels: ndarray,
    names: Sequence[str],
    masks: Sequence[Bool[ndarray, "H W"] | None],
) -> str:
    """A picture with boxes, their names, and masks over it, as a PNG in base64."""
    blended = picture.astype(np.float32)
    for label, mask in zip(labels, masks, strict=True):
        if mask is not None:
            blended[mask] = 0.55 * blended[mask] + 0.45 * np.array(COLOURS[label % len(COLOURS)])
    image = Image.fromarray(blended.round().astype(np.uint8))
    factor = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    pen = ImageDraw.Draw(image)
    for box, label, name in zip(boxes * factor, labels, names, strict=True):
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle(tuple(box), outline=colour, width=2)
        place = (float(box[0]) + 2, max(0.0, float(box[1]) - 11))
        pen.rectangle(pen.textbbox(place, name), fill=colour)
        pen.text(place, name, fill=(255, 255, 255))
    buffer = io.BytesIO()
    image.quantize(64).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def image_f1(test: DetectionSet, number: int, found: Found) -> float:
    """Twice the objects of an image that are found, over those that are there and those predicted; 1 of neither."""
    truth = test.objects[number]
    real = ~truth.crowd
    boxes, labels = truth.boxes[real], truth.labels[real]
    sure = np.flatnonzero(found.scores >= SURE)
    sure = sure[np.argsort(-found.scores[sure], kind="stable")]
    left = np.ones(len(boxes), bool)
    hits = 0
    for row in sure:
        overlap = overlaps(found.boxes[row], boxes) * (left & (labels == found.labels[row]))
        if len(overlap) and overlap.max() >= OVERLAP:
            left[overlap.argmax()] = False
            hits += 1
    total = len(boxes) + len(sure)
    return 2 * hits / total if total else 1.0


def overlaps(box: Float[ndarray, " 4"], boxes: Float[ndarray, "N 4"]) -> Float[ndarray, " N"]:
    """The intersection over union of a box with others."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    shares: Float[ndarray, " N"] = shared / np.maximum(area - shared, 1e-9)
    return shares
