"""Views of samples as one batch, each copied once: into the memory of the batch."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..modeling.types import Batch, Modality, to_float
from .transforms import Sample


class StepMemory:
    """The memory of the maps of one batch, which threads fill part by part; page-locked if `pinned`, for a GPU to read.

    A map of a modality that is of another type than the first of them, bytes among floats, has no place in it.
    """

    def __init__(self, count: int, pinned: bool = False) -> None:
        self.count, self.pinned = count, pinned
        self._maps: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def rows(self, name: str, start: int, images: Sequence[Shaped[Tensor, "_ _ _"]]) -> Tensor | None:
        """The rows from `start` on that hold so many images of one shape and type; None where there is no place."""
        first = images[0]
        with self._lock:
            if name not in self._maps:
                layout = torch.contiguous_format if first.is_contiguous() else torch.channels_last  # as decoders write
                shape, kind = (self.count, *first.shape), first.dtype
                self._maps[name] = torch.empty(shape, dtype=kind, pin_memory=self.pinned, memory_format=layout)
        memory = self._maps[name]
        fits = all(image.dtype == memory.dtype and image.shape == memory.shape[1:] for image in images)
        return memory[start : start + len(images)] if fits else None


def collate(
    views: Sequence[Sample],
    keys: Int[Tensor, " B"],
    modalities: Sequence[Modality],
    size: tuple[int, int],
    missing: Collection[str] | None = (),
    complete: Collection[str] = (),
    memory: StepMemory | None = None,
    start: int = 0,
) -> Batch:
    """Views of `size` (height, width) as a batch at progress 0: a missing map is zeros, neither valid nor present.

    `present` covers the modalities that may be `missing`; with None, a plain source, the batch has maps alone. `valid`
    covers all but the `complete` modalities. The maps lie in `memory` from row `start` on, where they fit into it.
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
            empty = torch.zeros(m.channels, *shape, dtype=torch.int64 if m.kind == "categorical" else torch.uint8)
            images = [empty if i is None else i.long() if m.kind == "categorical" else i for i in images]
        there_are = [image for image in images if image is not None]
        rows = memory.rows(m.name, start, there_are) if memory is not None else None
        if rows is None:
            maps[m.name] = concatenate([image[None] for image in there_are])
        else:
            maps[m.name] = torch.stack(there_are, out=rows)
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
    """Images along the batch; in [0, 1] where bytes and floats meet, for a folder may mix 8 and 16 bits.

    Neighbours in one memory are not copied.
    """
    if len({image.dtype for image in images}) > 1:
        images = [to_float(image) for image in images]
    first = images[0]
    if len(images) == 1:
        return first
    if _are_neighbours(images):
        return first.as_strided((sum(map(len, images)), *first.shape[1:]), first.stride())
    return torch.cat(list(images))


def _are_neighbours(images: Sequence[Shaped[Tensor, "_ _ _ _"]]) -> bool:
    storages = {(image.untyped_storage().data_ptr(), image.stride()) for image in images}
    starts = [image.data_ptr() for image in images]
    ends = [start + image.nbytes for start, image in zip(starts, images, strict=True)]
    layouts = (torch.contiguous_format, torch.channels_last)
    is_dense = any(images[0].is_contiguous(memory_format=layout) for layout in layouts)
    return is_dense and len(storages) == 1 and starts[1:] == ends[:-1]
