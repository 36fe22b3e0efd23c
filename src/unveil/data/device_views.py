"""Random views of pictures made on the device that trains: threads decode and cut, the device resizes and flips.

The boxes and flips are those of `View`, drawn by the same keys. Antialiased bicubic resizing is two matrix products per
picture; its weights are those of Keys (1981, a = -0.5), stretched by the reduction, as Pillow and torch have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..modeling.types import Batch, to_float
from .encoded import EncodedPicture
from .transforms import Cut, Keys, Sample, View, draw_cuts, in_decoded

CUTS = (
    "cuts of pictures"  # the map of a batch that is not seen yet: where each picture lies in the other, and its flips
)
_AT_ONCE = 32  # pictures in float on the device
_REACH = 2.0  # of the bicubic kernel, in pixels


@dataclass(frozen=True)
class Crop:
    """The box of a view in its picture, turned as the view is; the device resizes it and flips it."""

    pixels: Shaped[Tensor, "C H W"]
    mirrored: bool
    upside_down: bool


def crops_of(samples: Sequence[Sample | EncodedPicture], view: View, name: str, keys: Keys) -> list[Crop]:
    """The boxes of random views, drawn by the samples' keys. Raises ValueError where pixels may lack a value."""
    cuts = draw_cuts([sample.size for sample in samples], view, keys)
    return [_crop(sample, cut, view.image_size, name) for sample, cut in zip(samples, cuts, strict=True)]


def _crop(sample: Sample | EncodedPicture, cut: Cut, size: tuple[int, int], name: str) -> Crop:
    decoded, cut = in_decoded(sample, cut, size)
    assert name not in decoded.valid, f"{name} is a measured map"
    box = decoded.maps[name][:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    return Crop(box.transpose(1, 2) if cut.turned else box, cut.mirrored, cut.upside_down)


def collate_crops(crops: Sequence[Crop], keys: Int[Tensor, " B"], name: str, size: tuple[int, int]) -> Batch:
    """Crops one after another, and a row for each: start, channels, height, width, its two flips, and the view's size.

    Bytes, or floats in [0, 1] where one of them is.
    """
    pixels = [crop.pixels for crop in crops]
    if len({image.dtype for image in pixels}) > 1:
        pixels = [to_float(image) for image in pixels]
    rows, start = [], 0
    for crop in crops:
        rows.append([start, *crop.pixels.shape, crop.mirrored, crop.upside_down, *size])
        start += crop.pixels.numel()
    flat = torch.cat([image.reshape(-1) for image in pixels]) if pixels else torch.empty(0, dtype=torch.uint8)
    return Batch({name: flat, CUTS: torch.tensor(rows, dtype=torch.int64).view(-1, 8)}, keys, torch.zeros(()))


def join_crops(batches: Sequence[Batch], pinned: bool) -> Batch:
    """Batches of crops one after another, in page-locked memory if `pinned`."""
    name = next(iter(batches[0].maps))
    flats, rows, start = [batch.maps[name] for batch in batches], [], 0
    if len({flat.dtype for flat in flats if len(flat)}) > 1:
        flats = [to_float(flat) for flat in flats]
    flats = [flat for flat in flats if len(flat)] or flats[:1]
    for batch in batches:
        rows.append(batch.maps[CUTS] + torch.tensor([start, 0, 0, 0, 0, 0, 0, 0]))
        start += len(batch.maps[name])
    flat = torch.empty(start, dtype=flats[0].dtype, pin_memory=pinned)
    maps = {name: torch.cat(flats, out=flat), CUTS: torch.cat(rows)}
    return Batch(maps, torch.cat([batch.key for batch in batches]), batches[0].progress)


def seen_on(batch: Batch, device: torch.device) -> Batch:
    """The batch with its views made on the device, bytes as bytes; one whose views were made already as it is.

    Of bytes no pixel differs by more than two levels from the views of `View`.
    """
    if CUTS not in batch.maps:
        return batch
    (name, flat), table = next(iter(batch.maps.items())), batch.maps[CUTS].tolist()
    flat = flat.to(device, non_blocking=True)
    height, width = table[0][6:]
    views = torch.empty(len(table), table[0][1], height, width, dtype=flat.dtype, device=device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for first in range(0, len(table), _AT_ONCE):
            rows = table[first : first + _AT_ONCE]
            views[first : first + len(rows)] = _resized(flat, rows, (height, width))
    return replace(batch, maps={name: views})


def _resized(flat: Shaped[Tensor, " P"], rows: list[list[int]], size: tuple[int, int]) -> Shaped[Tensor, "b C h w"]:
    channels, device = rows[0][1], flat.device
    tall, wide = max(row[2] for row in rows), max(row[3] for row in rows)
    pictures = torch.zeros(len(rows), channels, tall, wide, dtype=flat.dtype, device=device)
    for picture, (start, _, height, width, *_) in zip(pictures, rows, strict=True):
        picture[:, :height, :width] = flat[start : start + channels * height * width].view(channels, height, width)
    sides = torch.tensor([row[2:6] for row in rows]).to(device, non_blocking=True)
    down = _weights(sides[:, 0], sides[:, 3], size[0], tall)  # b h H
    across = _weights(sides[:, 1], sides[:, 2], size[1], wide)  # b w W
    is_bytes = flat.dtype == torch.uint8
    top = 255.0 if is_bytes else 1.0
    # Bytes are rounded after each pass, as where the views are made on the processor.
    first = (pictures.float().flatten(1, 2) @ across.mT).clamp(0, top)
    first = (first.round() if is_bytes else first).unflatten(1, (channels, tall))
    second: Tensor = (down[:, None] @ first).clamp(0, top)
    return second.round().to(torch.uint8) if is_bytes else second


def _weights(side: Int[Tensor, " b"], flipped: Int[Tensor, " b"], size: int, most: int) -> Float[Tensor, "b n m"]:
    """How much each of `most` source pixels, of which `side` are there, counts for each of `size` new ones."""
    new, old = torch.arange(size, device=side.device), torch.arange(most, device=side.device)
    new = torch.where(flipped[:, None] > 0, size - 1 - new, new)  # b n
    scale = side[:, None].float() / size
    stretch = scale.clamp_min(1)
    distance = (((old + 0.5) - ((new + 0.5) * scale)[:, :, None]) / stretch[:, :, None]).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance <= 1, near, torch.where(distance < _REACH, far, 0))
    weights = weights * (old < side[:, None, None])
    normalised: Tensor = weights / weights.sum(2, keepdim=True)
    return normalised
