"""Batches copied to a GPU while it computes the step before."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..modeling.types import Batch
from .device_views import CUTS, seen_on


class CopyStream:
    """A stream of copies beside that of the computation."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def copying(self) -> Iterator[None]:
        """What is called inside is queued on the stream of copies."""
        with torch.cuda.stream(self._stream):
            yield

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Let the computation wait for the copies so far, and keep their memory until it has read them."""
        computing = torch.cuda.current_stream(self._stream.device)
        computing.wait_stream(self._stream)
        for tensor in tensors:
            tensor.record_stream(computing)


def uploaded(batches: Iterable[Batch], device: torch.device, stream: CopyStream | None = None) -> Generator[Batch]:
    """The batches with their maps on the device; for another than a GPU as they are, since a step moves what it needs.

    The processor runs ahead of a GPU, so the copy of a batch in page-locked memory, bytes as bytes, is queued while the
    step before is computed. What says which pixels and modalities there are stays behind: the processor reads it. Views
    that are to be made on the device are made there.
    """
    if stream is None:
        if device.type != "cuda":
            yield from (seen_on(batch, device) for batch in batches)
            return
        stream = CopyStream(device)
    for batch in batches:
        with stream.copying():
            maps = {name: values.to(device, non_blocking=True) for name, values in batch.maps.items() if name != CUTS}
        stream.hand_over(maps.values())
        yield seen_on(replace(batch, maps={**batch.maps, **maps}), device)
