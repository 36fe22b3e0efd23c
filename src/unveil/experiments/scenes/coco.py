"""Rendered scenes in the layout of COCO: pictures, and a JSON with the box and the mask of every thing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.detection.masks import RunLengths
from ...runs.atomic import write_json
from .raycast import render
from .source import SceneSource
from .things import CLASSES, CLUTTER
from .writing import all_or_none

CATEGORIES = (*CLUTTER, *CLASSES)
_BEFORE = 3  # semantic classes that are no things: sky, floor, wall
_LEAST = 8  # pixels, below which a thing cannot be told and is no object


def write_coco(scenes: SceneSource, held_out: SceneSource, folder: Path) -> None:
    """Write scenes to `train/`, others to `val/`, and `annotations/instances_train.json` and `instances_val.json`.

    A thing is an object where at least 8 of its pixels are seen. All is there or none.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)]
    with all_or_none(folder, len(scenes) + len(held_out)) as (unfinished, draw):
        (unfinished / "annotations").mkdir()
        for split, source in (("train", scenes), ("val", held_out)):
            (unfinished / split).mkdir()
            drawn = draw(partial(_draw, unfinished / split, source.seed, source.size), range(len(source)))
            images = [
                {"id": number, "file_name": f"{number:06d}.png", "width": source.size, "height": source.size}
                for number in range(len(source))
            ]
            annotations = [
                {"id": number, **one} for number, one in enumerate((one for own in drawn for one in own), start=1)
            ]
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(unfinished / "annotations" / f"instances_{split}.json", content)


def _draw(folder: Path, seed: int, size: int, index: int) -> list[dict[str, Any]]:
    """Writes the picture of a scene and returns its annotations."""
    scene = render((seed, index), size)
    Image.fromarray(scene.rgb.transpose(1, 2, 0)).save(folder / f"{index:06d}.png")
    annotations = []
    for thing in range(1, int(scene.things.max()) + 1):
        mask = scene.things == thing
        if mask.sum() < _LEAST:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        annotations.append(
            {
                "image_id": index,
                "category_id": int(scene.semseg[mask][0]) - _BEFORE + 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": RunLengths.of(mask).as_coco(),
            }
        )
    return annotations
