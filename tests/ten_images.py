"""Ten images in the layout of COCO, as people label them: polygons, run lengths, crowds, an image without objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 40
CATEGORIES = [{"id": 3, "name": "ball"}, {"id": 7, "name": "block"}]


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A rectangle as one polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def runs(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """A rectangle as run lengths."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat)) if flat.any() else []
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, WIDTH * HEIGHT]).tolist()}


def content(count: int = 10) -> dict[str, Any]:
    """The JSON: image 3 is without objects, 4 and 5 have crowds, 6 and 7 run lengths, 8 an object in two parts."""
    images = [{"id": 10 + n, "file_name": f"{n:02}.png", "width": WIDTH, "height": HEIGHT} for n in range(count)]
    annotations: list[dict[str, Any]] = []

    def add(image: int, kind: int, box: list[float], segmentation: Any, crowd: int = 0) -> None:
        area = box[2] * box[3]
        number = 1 + len(annotations)
        entry = {"id": number, "image_id": 10 + image, "category_id": kind, "bbox": box, "area": area}
        annotations.append({**entry, "iscrowd": crowd, "segmentation": segmentation})

    for n in range(count):
        box = [2 + n, 3 + n, 12, 10 + n]
        if n == 3:
            continue
        add(n, 3 if n % 2 else 7, box, runs(*box) if n in (6, 7) else polygon(*box))
        if n in (4, 5):
            add(n, 3, [24, 4, 20, 20], runs(24, 4, 20, 20), crowd=1)
        if n == 8:
            add(n, 3, [24, 4, 20, 6], polygon(24, 4, 6, 6) + polygon(36, 4, 8, 6))
    return {"images": images, "annotations": annotations, "categories": [dict(one) for one in CATEGORIES]}


def draw(folder: Path, labels: dict[str, Any], grey: int = 60) -> None:
    """The pictures: a bright rectangle where there is an object, of a colour for each category."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in labels["images"]:
        pixels = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
        for one in labels["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, width, height = map(int, one["bbox"])
                pixels[y : y + height, x : x + width] = (250, 40, 40) if one["category_id"] == 3 else (40, 90, 250)
        Image.fromarray(pixels).save(folder / image["file_name"])


def write(root: Path, labels: dict[str, Any] | None = None, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Folders of images and `annotations/instances_*.json`, the same for each split."""
    labels = content() if labels is None else labels
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        draw(root / f"{split}2017", labels)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(labels))
    return root
