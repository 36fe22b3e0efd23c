"""Frozen features: what an encoder says about every image of a source, read once and kept in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.decode import Unreadable
from ..data.sources import Source, spread
from ..data.transforms import center_view
from ..modeling.types import to_float
from ..runs.hardware import autocast, num_cores, reading_threads
from .types import FeatureEncoder, Pool


@dataclass(frozen=True)
class Features:
    """One vector per readable image, with its label (where the source has labels) and its name."""

    values: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"] | None
    names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Int[Tensor, " K"]) -> Features:
        """Some of the images; nothing among them is unreadable."""
        labels = None if self.labels is None else self.labels[rows]
        return Features(self.values[rows], labels, tuple(self.names[i] for i in rows.tolist()))

    def to(self, device: torch.device) -> Features:
        """The same features on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, values=self.values.to(device), labels=labels)


def extract(
    encoder: FeatureEncoder,
    source: Source,
    pool: Pool,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Features:
    """The features of a source's images, in the source's order.

    Threads decode a few batches ahead of the model; memory holds those and the features. `limit` takes that many
    images, evenly spaced over the source. `progress` is told (done, total) after every batch. Images that cannot be
    read are left out and named in `unreadable`. Raises ValueError when nothing can be read, when the encoder and the
    images differ in channels, and when a feature is not finite.
    """
    check_channels(encoder, source)
    chosen = spread(len(source), len(source) if limit is None else limit)
    total = len(chosen)
    values: Tensor | None = None
    kept: list[int] = []
    unreadable: list[str] = []
    for batch in decoded(source, chosen, batch_size, encoder.image_size):
        unreadable += batch.unreadable
        if batch.images is not None:
            with torch.inference_mode(), autocast(encoder.device):
                found = encoder.features(to_float(batch.images.to(encoder.device)), pool).to(dtype)
            if values is None:
                values = torch.empty(total, found.shape[1], dtype=dtype)
            values[len(kept) : len(kept) + len(found)] = found.cpu()
            kept += batch.indices
        if progress is not None:
            progress(len(kept) + len(unreadable), total)
    if values is None:
        raise ValueError(
            f"none of the {total} images of {source.address} can be read; look at them, e.g. {unreadable[:3]}"
        )
    values = values[: len(kept)]
    if not values.isfinite().all():
        raise ValueError("the encoder gives features that are not finite; its weights are broken or diverged")
    labels = None if source.labels is None else torch.tensor([source.labels[i] for i in kept], dtype=torch.int64)
    return Features(values, labels, tuple(source.name(i) for i in kept), tuple(unreadable))


def check_channels(encoder: FeatureEncoder, source: Source) -> None:
    """Raise ValueError when the source's images are not of the encoder's kind."""
    if source.channels != encoder.channels:
        raise ValueError(
            f"{source.address} has images of {source.channels} channels, the encoder reads {encoder.channels};"
            " evaluate on images of the kind it was trained on"
        )


@dataclass(frozen=True)
class Decoded:
    """The readable ones of some images, as centre views, and the names of the others."""

    images: Tensor | None
    indices: list[int]
    unreadable: list[str]


def decoded(source: Source, chosen: list[int], batch_size: int, size: tuple[int, int]) -> Iterator[Decoded]:
    """Centre views of some images, batch by batch, decoded by threads that stay at most one batch each ahead."""
    workers = min(8, num_cores())
    pool = reading_threads(workers)
    waiting: deque = deque()
    try:
        for start in range(0, len(chosen), batch_size):
            waiting.append(pool.submit(_decode, source, chosen[start : start + batch_size], size))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(source: Source, indices: list[int], size: tuple[int, int]) -> Decoded:
    views: list[Tensor] = []
    kept: list[int] = []
    unreadable: list[str] = []
    for i in indices:
        try:
            views.append(center_view(source.image(i), size))
            kept.append(i)
        except Unreadable:
            unreadable.append(source.name(i))
    if len({view.dtype for view in views}) > 1:  # bytes and floats in one source: only in [0, 1] do they mix
        views = [to_float(view) for view in views]
    return Decoded(torch.stack(views) if views else None, kept, unreadable)
