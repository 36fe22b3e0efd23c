"""What a detector finds in whole images of any size, each fitted into its view."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.collate import collate
from ...data.extras import optional
from ...data.transforms import Sample
from ...modeling.types import Modality, to_float
from .average_precision import Found
from .model import Detector
from .ops import NEEDED, detection_modules
from .views import DetectionView


def detect_whole(
    model: Detector,
    samples: Sequence[Sample],
    view: DetectionView,
    modality: Modality,
    autocast: AbstractContextManager[Any],
) -> list[Found]:
    """The boxes, and masks where there are some, of each sample, in its own pixels."""
    wholes = [view.whole(sample, (modality,)) for sample in samples]
    keys = torch.zeros(len(samples), dtype=torch.int64)
    device = next(model.parameters()).device
    batch = collate([one for one, _ in wholes], keys, (modality,), view.image_size).on(device)
    with autocast:
        detected = model.detect(to_float(batch.maps["rgb"]), [made for _, made in wholes])
    return [
        _at_own_size(one, made, sample.size) for one, (_, made), sample in zip(detected, wholes, samples, strict=True)
    ]


def _at_own_size(one: dict[str, Tensor], made: tuple[int, int], size: tuple[int, int]) -> Found:
    """Predictions in a view as those of its image, of which `made` is the size in the view."""
    scale = torch.tensor([size[1] / made[1], size[0] / made[0]] * 2)
    boxes = one["boxes"].float().cpu() * scale
    masks = None
    if "masks" in one:
        encoder = optional("faster_coco_eval", NEEDED).mask
        paste = detection_modules().roi_heads.paste_masks_in_image
        pasted = [
            paste(m, b, size)[:, 0] > 0.5 for m, b in zip(one["masks"].cpu().split(16), boxes.split(16), strict=True)
        ]
        masks = [encoder.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for part in pasted for mask in part]
    labels, scores = one["labels"].cpu().numpy() - 1, one["scores"].float().cpu().numpy()
    return Found(boxes.numpy(), labels, scores, masks)
