"""Average precision of boxes and masks as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from ...data.detection.annotations import DetectionSet
from ...data.extras import optional
from .ops import NEEDED

SIZES = ("", "_small", "_medium", "_large")  # COCO's: below 32 x 32 pixels, below 96 x 96, and from there on
_FIFTY, _SEVENTY_FIVE = 0, 5  # among the thresholds .5, .55, ..., .95


@dataclass(frozen=True, eq=False)
class Found:
    """What is predicted in one image, at its own size: boxes (x0, y0, x1, y1), classes from 0, scores, masks as RLE."""

    boxes: Float[ndarray, "N 4"]
    labels: ndarray
    scores: ndarray
    masks: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Metrics by name, the AP of each class, and the precision at each of 101 recalls at an overlap of one half."""

    metrics: dict[str, float]
    per_class: dict[str, float]
    curve: Float64[ndarray, " 101"]


def average_precision(test: DetectionSet, found: Mapping[int, Found], kind: str) -> AveragePrecision:
    """AP of boxes ("bbox") or of masks ("segm") over the images in `found`, by their numbers in the set.

    AP is the mean over overlaps of .5 to .95 and over classes that occur; of no object of a size it is not given.
    """
    coco = optional("faster_coco_eval", NEEDED)
    numbers = sorted(found)
    truths: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number in numbers:
        one = test.objects[number]
        for row in range(len(one)):
            x0, y0, x1, y1 = one.boxes[row].tolist()
            mask = one.masks[row]
            entry: dict[str, Any] = {"id": len(truths) + 1, "image_id": number, "category_id": int(one.labels[row]) + 1}
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(one.areas[row])}
            entry |= {"iscrowd": int(one.crowd[row])}
            if kind == "segm":
                outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]  # of a crowd that has a box alone
                entry["segmentation"] = outline if mask is None else mask.as_coco()
            truths.append(entry)
        own = found[number]
        for row, (x0, y0, x1, y1) in enumerate(own.boxes.tolist()):
            result: dict[str, Any] = {
                "image_id": number,
                "category_id": int(own.labels[row]) + 1,
                "score": float(own.scores[row]),
            }
            if kind == "segm" and own.masks is not None:
                result["segmentation"] = own.masks[row]
            else:
                result["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            results.append(result)
    images = [{"id": n, "height": test.sizes[n][0], "width": test.sizes[n][1]} for n in numbers]
    categories = [{"id": n, "name": name} for n, name in enumerate(test.classes, start=1)]
    if not results:
        return _nothing(test, found)
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints as it goes
        truth = coco.COCO({"images": images, "annotations": truths, "categories": categories})
        evaluation = coco.COCOeval_faster(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])  # overlaps, recalls, classes, sizes, most predictions
    return _summary(test, precision[..., -1])


def _summary(test: DetectionSet, precision: Float64[ndarray, "T R K A"]) -> AveragePrecision:
    metrics = {f"ap{name}": _mean(precision[..., size]) for size, name in enumerate(SIZES)}
    metrics |= {"ap50": _mean(precision[_FIFTY, ..., 0]), "ap75": _mean(precision[_SEVENTY_FIVE, ..., 0])}
    per_class = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(test.classes)}
    at_half = precision[_FIFTY, :, :, 0]
    known = at_half[:, (at_half > -1).all(0)]
    curve = known.mean(1) if known.size else np.zeros(len(at_half))
    return AveragePrecision(_known(metrics), _known(per_class), curve)


def _mean(values: ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value == value}


def _nothing(test: DetectionSet, found: Mapping[int, Found]) -> AveragePrecision:
    """Zeros, for an evaluation without a single prediction, of the classes that occur."""
    present = {int(label) for n in found for label in test.objects[n].labels[~test.objects[n].crowd]}
    per_class = {name: 0.0 for label, name in enumerate(test.classes) if label in present}
    return AveragePrecision({"ap": 0.0, "ap50": 0.0, "ap75": 0.0}, per_class, np.zeros(101))
