"""Predicted boxes and masks as a file in COCO's layout, and as pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.extras import optional
from ..evaluation.detection.average_precision import Found
from ..evaluation.detection.drawing import SURE, draw
from ..evaluation.detection.ops import NEEDED
from ..modeling.types import to_float
from ..reporting.pictures import viewable
from ..runs.atomic import make_folder, write_bytes


class CocoResults:
    """Images, categories (ids from 1, in the order of the classes) and annotations with a score, which grow by image.

    Boxes are x, y, width, height in pixels; masks compressed RLE.
    """

    def __init__(self, classes: Sequence[str]):
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
        self.content: dict[str, list[dict[str, Any]]] = {"images": [], "categories": categories, "annotations": []}

    def add(self, name: str, size: tuple[int, int], found: Found) -> None:
        """Add what was found in an image of a size (height, width)."""
        images, annotations = self.content["images"], self.content["annotations"]
        images.append({"id": len(images) + 1, "file_name": name, "height": size[0], "width": size[1]})
        masks: Sequence[Any] = found.masks if found.masks is not None else [None] * len(found.scores)
        for box, label, score, mask in zip(found.boxes, found.labels, found.scores, masks, strict=True):
            x0, y0, x1, y1 = (round(float(side), 2) for side in box)
            own: dict[str, Any] = {"id": len(annotations) + 1, "image_id": len(images), "category_id": int(label) + 1}
            own |= {"bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)], "score": round(float(score), 5)}
            if mask is not None:
                counts = mask["counts"]
                text = counts.decode("ascii") if isinstance(counts, bytes) else counts
                own["segmentation"] = {"size": [int(side) for side in mask["size"]], "counts": text}
            annotations.append(own | {"iscrowd": 0, "area": round((x1 - x0) * (y1 - y0), 2)})


def draw_boxes(file: Path, image: Tensor, found: Found, classes: Sequence[str]) -> None:
    """A picture with the boxes and masks that are surer than 30 %, as a PNG."""
    rows = np.flatnonzero(found.scores >= SURE)
    masks: list[Any] = [None] * len(rows)
    if found.masks is not None:
        coder = optional("faster_coco_eval", NEEDED).mask
        masks = [coder.decode(found.masks[int(row)]).astype(bool) for row in rows]
    names = [f"{classes[found.labels[row]]} {found.scores[row]:.0%}" for row in rows]
    picture = viewable(to_float(image).float().clamp(0, 1).numpy())
    make_folder(file.parent)
    write_bytes(file, base64.b64decode(draw(picture, found.boxes[rows], found.labels[rows], names, masks)))
