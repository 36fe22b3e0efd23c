"""torchvision's detection code, beside any build of torch: NMS and RoIAlign in plain torch where none are compiled."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEEDED = (
    "detect needs torchvision and faster-coco-eval: pip install --no-deps 'torchvision' of your torch (0.28 for torch"
    " 2.13), and pip install faster-coco-eval; or pip install 'unveil[detect]' where torch is as pip installs it"
)
_SCHEMAS = {
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",  # of quantised boxes: its name alone
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": (
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width,"
        " int sampling_ratio, bool aligned) -> Tensor"
    ),
}
_ROWS = 512  # boxes that are compared with all others at once
_VALUES = 1 << 24  # numbers of one product of RoIAlign


@cache
def detection_modules() -> ModuleType:
    """`torchvision.models.detection`. Raises ValueError where it is not installed, or does not fit this torch.

    Beside a CPU build of torch the compiled operators of the usual torchvision cannot be loaded, and its import fails
    since nothing has their names: then these two are defined in plain torch.
    """
    try:
        try:
            import_module("torchvision")
        except RuntimeError:  # operator torchvision::nms does not exist
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            _define()
        return import_module("torchvision.models.detection")
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"{NEEDED} ({type(error).__name__}: {str(error)[:120]})") from error


_libraries: list[Any] = []  # definitions last as long as their library


def _define() -> None:
    """The names of the operators, what they do, and torchvision with the belief that it has them."""
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        library.define(schema)
    library.impl("nms", nms, "CompositeExplicitAutograd")
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    _libraries.append(library)
    import_module("torchvision")
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        sys.modules[name]._has_ops = lambda: True  # type: ignore[attr-defined]


def nms(boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou_threshold: float) -> Int[Tensor, " K"]:
    """The boxes (x0, y0, x1, y1) that overlap no kept box of a higher score by more, the highest score first.

    The greedy rule is solved for all boxes at once: a box goes where a better one that stays covers it, and the answer
    settles after as many rounds as boxes cover one another in a chain.
    """
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes = boxes[order].float()
    covers = _covers(sorted_boxes, iou_threshold).float()
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        after = ~(kept.float() @ covers).bool()
        if torch.equal(after, kept):
            return order[kept]
        kept = after


def _covers(boxes: Float[Tensor, "N 4"], iou_threshold: float) -> Bool[Tensor, "N N"]:
    """Whether the box of a row, the better one, overlaps that of a column by more than the threshold."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    parts = []
    for rows in torch.arange(len(boxes), device=boxes.device).split(_ROWS):
        own = boxes[rows]
        low, high = torch.maximum(own[:, None, :2], boxes[:, :2]), torch.minimum(own[:, None, 2:], boxes[:, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        parts.append(shared / (area[rows, None] + area - shared) > iou_threshold)
    covers = torch.cat(parts) if parts else torch.zeros(0, 0, dtype=torch.bool, device=boxes.device)
    return covers.triu(1)


def roi_align(
    input: Float[Tensor, "B C H W"],
    rois: Float[Tensor, "R 5"],
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "R C h w"]:
    """Means of bilinear samples in each cell of a grid on each box (He et al., 2017), as torchvision defines them.

    `rois` have the number of their image first. Bilinear weights of a grid are a product of those of its rows and
    those of its columns, so all samples are two matrix products, whose gradients are the same on every run.
    """
    offset = 0.5 if aligned else 0.0
    boxes = rois[:, 1:].float() * spatial_scale - offset
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides if aligned else sides.clamp(min=1)
    height, width = input.shape[-2:]
    by_row = _weights(boxes[:, 1], sides[:, 1], pooled_height, height, sampling_ratio)
    by_column = _weights(boxes[:, 0], sides[:, 0], pooled_width, width, sampling_ratio)
    out = input.new_zeros(len(rois), input.shape[1], pooled_height, pooled_width, dtype=torch.float32)
    with torch.autocast(input.device.type, enabled=False):
        images = rois[:, 0].long()
        at_once = max(1, _VALUES // (pooled_height * input.shape[1] * width))
        places, parts = [], []
        for image in images.unique().tolist():
            for rows in (images == image).nonzero()[:, 0].split(at_once):
                lines = torch.einsum("rph,chw->rcpw", by_row[rows], input[image].float())
                parts.append(torch.einsum("rcpw,rqw->rcpq", lines, by_column[rows]))
                places.append(rows)
        if parts:
            out = torch.cat(parts)[torch.cat(places).argsort()]
    return out.to(input.dtype)


def _weights(
    start: Float[Tensor, " R"], side: Float[Tensor, " R"], bins: int, length: int, sampling_ratio: int
) -> Float[Tensor, "R {bins} {length}"]:
    """How much each of the `length` pixels of a side counts in each bin of each box."""
    step = side / bins
    counts = step.ceil().clamp(min=1) if sampling_ratio <= 0 else torch.full_like(step, sampling_ratio)
    most = int(counts.max()) if len(counts) else 1
    samples = torch.arange(most, device=start.device)
    within = (samples + 0.5) / counts[:, None]  # R S, of the bin
    places = (
        start[:, None, None]
        + (torch.arange(bins, device=start.device)[:, None] + within[:, None]) * step[:, None, None]
    )
    is_used = (samples < counts[:, None])[:, None] & (places >= -1) & (places <= length)
    places = places.clamp(0, length - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=length - 1)
    share = places - low
    scale = is_used / counts[:, None, None]
    weights = start.new_zeros(len(start), bins, length)
    weights = weights.scatter_add(2, low, (1 - share) * scale)
    return weights.scatter_add(2, high, share * scale)
