"""Views of samples as a batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..modeling.types import Batch, Modality, to_float
from .samples import Sample


def collate(
    views: Sequence[Sample],
    keys: Int[Tensor, " B"],
    modalities: Sequence[Modality],
    size: tuple[int, int],
    missing: Collection[str] | None = (),
    complete: Collection[str] = (),
) -> Batch:
    """Views of `size` (height, width) as a batch at progress 0: a missing map is zeros, neither valid nor present.

    `present` covers the modalities that may be `missing`; with None, a plain source, the batch has maps alone. `valid`
    covers all but the `complete` modalities.
    """
    maps: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    present: dict[str, Tensor] = {}
    for m in modalities if views else ():
        images = [view.maps.get(m.name) for view in views]
        if missing is not None:
            shape = (size[0] // m.stride, size[1] // m.stride)
            there = torch.tensor([image is not None for image in images])
            known = [view.valid.get(m.name) for view in views]
            if m.name not in complete:
                everywhere = torch.ones(1, *shape, dtype=torch.bool)
                valid[m.name] = torch.stack([everywhere if v is None else v for v in known])
                valid[m.name] &= there[:, None, None, None]
            else:
                assert all(v is None for v in known), f"{m.name} is not complete"
            if m.name in missing:
                present[m.name] = there
            dtype = torch.int64 if m.kind == "categorical" else torch.uint8
            empty = torch.zeros(m.channels, *shape, dtype=dtype)
            images = [empty if i is None else i.long() if m.kind == "categorical" else i for i in images]
        maps[m.name] = concatenate([image[None] for image in images if image is not None])
    return Batch(maps, keys, torch.zeros(()), valid, present)


def join(batches: Sequence[Batch]) -> Batch:
    """Batches one after another; those of no samples are passed over."""
    batches = [batch for batch in batches if len(batch)] or list(batches[:1])
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return Batch(
        {name: concatenate([b.maps[name] for b in batches]) for name in first.maps},
        torch.cat([b.key for b in batches]),
        first.progress,
        {name: torch.cat([b.valid[name] for b in batches]) for name in first.valid},
        {name: torch.cat([b.present[name] for b in batches]) for name in first.present},
    )


def concatenate(images: Sequence[Shaped[Tensor, "_ _ _ _"]]) -> Shaped[Tensor, "B C H W"]:
    """Images along the batch; in [0, 1] where bytes and floats meet, for a folder may mix 8 and 16 bits."""
    if len({image.dtype for image in images}) > 1:
        images = [to_float(image) for image in images]
    return images[0] if len(images) == 1 else torch.cat(list(images))
