"""Batches of random views. What is in them depends on (seed, epoch, sample) alone, not on threads or on the past."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..chance import Chance, mix, sample_keys
from ..machine import num_cores
from ..records import Batch, unit
from .decode import Unreadable
from .sources import Source
from .views import View, draw_cuts

_CHUNKS = (16, 64)  # the fewest and the most samples that one thread prepares at a time
_BATCHES_AHEAD = 2
_REPLACEMENTS_TRIED = 32
_TRIED_BEFORE_STOPPING = 20


class TooManyBroken(ValueError):  # noqa: N818
    """More images cannot be read than the run was told to accept."""


@dataclass(frozen=True)
class _Chunk:
    """What a thread made of some samples; a sample without a readable replacement has no view."""

    views: Shaped[Tensor, "b C H W"]
    tried: list[int]
    broken: dict[int, str]


class Loader:
    """Batches of random views of a source, prepared ahead by threads.

    Threads, not processes: the decoders, the resize and the reading of files all release Python's lock, so threads keep
    every core busy, share one cache, and end with Ctrl-C. Decoded images are cached on first use up to `cache_bytes`
    (default: a quarter of the free memory, at most 2 GB). `wait_seconds` is how long the consumer has waited,
    `broken` names the images that could not be read, with the reason; each is replaced by another, chosen by the
    sample's key. Raises `TooManyBroken` when more than `max_broken` of the images tried are broken (beyond what
    chance explains, as long as only a part has been tried).
    """

    def __init__(
        self,
        source: Source,
        view: View,
        batch_size: int,
        seed: int,
        workers: int | None = None,
        cache_bytes: int | None = None,
        max_broken: float = 0.05,
        modality: str = "rgb",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is too small; give 1 or more")
        if len(source) < 1:
            raise ValueError(f"{source.address} has no images; give a source with at least one")
        self.source, self.view, self.seed, self.modality = source, view, seed, modality
        self.batch_size = min(batch_size, len(source))
        self.workers = max(1, num_cores() if workers is None else workers)
        self.max_broken = max_broken
        self.wait_seconds = 0.0
        self.broken: dict[str, str] = {}
        self._tried = bytearray(len(source))
        self._num_tried = 0
        self._cache: dict[int, Tensor] = {}
        self._cache_left = min(2 << 30, psutil.virtual_memory().available // 4) if cache_bytes is None else cache_bytes

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; a source smaller than one batch is one batch."""
        return len(self.source) // self.batch_size

    def order(self, epoch: int) -> Int[Tensor, " N"]:
        """The samples in the order of this epoch, a permutation."""
        key = sample_keys(self.seed, epoch, torch.arange(len(self.source)))
        return Chance(key).fold("order").key.argsort()  # keys never tie: the hash is a bijection

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on; `progress` is 0, the training loop knows better."""
        order = self.order(epoch)
        steps = [order[s * self.batch_size :][: self.batch_size] for s in range(start_step, self.steps_per_epoch)]
        size = min(max(-(-self.batch_size // self.workers), _CHUNKS[0]), _CHUNKS[1])
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="unveil-data")
        pending: deque[tuple[Tensor, list[Future[_Chunk]]]] = deque()
        try:
            for ahead, samples in enumerate(steps):
                key = sample_keys(self.seed, epoch, samples)
                chunks = zip(samples.split(size), key.split(size), strict=True)
                pending.append((key, [pool.submit(self._prepare, *chunk) for chunk in chunks]))
                if ahead >= _BATCHES_AHEAD:
                    yield self._collect(*pending.popleft())
            while pending:
                yield self._collect(*pending.popleft())
        finally:  # also when the consumer stops early or Ctrl-C arrives: what has not begun is dropped
            pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, key: Int[Tensor, " B"], futures: list[Future[_Chunk]]) -> Batch:
        """The batch, once its chunks are there. What was broken is counted here, in the order of the steps."""
        began = time.perf_counter()
        chunks = [future.result() for future in futures]
        views = _joined([chunk.views for chunk in chunks])
        self.wait_seconds += time.perf_counter() - began
        for chunk in chunks:
            for index in chunk.tried:
                self._num_tried += not self._tried[index]
                self._tried[index] = 1
            for index, reason in chunk.broken.items():
                self.broken[self.source.name(index)] = reason
        if len(views) < len(key) or self._too_many_broken():
            raise TooManyBroken(self._broken_report())
        return Batch({self.modality: views}, key, torch.zeros(()))

    def _prepare(self, samples: Int[Tensor, " b"], key: Int[Tensor, " b"]) -> _Chunk:
        tried: list[int] = []
        broken: dict[int, str] = {}
        images = [self._readable(s, k, tried, broken) for s, k in zip(samples.tolist(), key, strict=True)]
        kept = [i for i, image in enumerate(images) if image is not None]
        found = [image for image in images if image is not None]
        cuts = draw_cuts([(image.shape[-2], image.shape[-1]) for image in found], self.view, key[kept])
        views = [cut.of(image, self.view.image_size)[None] for image, cut in zip(found, cuts, strict=True)]
        return _Chunk(_joined(views), tried, broken)

    def _readable(self, sample: int, key: Int[Tensor, ""], tried: list[int], broken: dict[int, str]) -> Tensor | None:
        """The sample's image, or that of the first readable replacement that its key leads to."""
        for attempt in range(1 + _REPLACEMENTS_TRIED):
            index = sample if attempt == 0 else int(mix(key + attempt)) % len(self.source)
            if index in broken:
                continue
            tried.append(index)
            try:
                return self._image(index)
            except Unreadable as error:
                broken[index] = error.reason
        return None

    def _image(self, index: int) -> Shaped[Tensor, "C H W"]:
        if index in self._cache:
            return self._cache[index]
        image = self.source.image(index)
        if image.nbytes <= self._cache_left:  # threads may overdraw this by an image each
            self._cache_left -= image.nbytes
            self._cache[index] = image
        return image

    def _too_many_broken(self) -> bool:
        if self._num_tried < min(_TRIED_BEFORE_STOPPING, len(self.source)):
            return False
        expected = self.max_broken * self._num_tried
        margin = 2 * expected**0.5 if self._num_tried < len(self.source) else 0
        return len(self.broken) > expected + margin

    def _broken_report(self) -> str:
        named = "\n".join(f"  {name}: {reason}" for name, reason in list(self.broken.items())[:10])
        more = f"\n  and {len(self.broken) - 10} more" if len(self.broken) > 10 else ""
        return (
            f"{len(self.broken)} of the {self._num_tried} images read so far from {self.source.address} are broken,"
            f" more than {self.max_broken:.0%}:\n{named}{more}\n"
            f"Repair or remove them (`unveil inspect` lists them all), or accept more with a higher max_broken"
        )


def _joined(parts: list[Shaped[Tensor, "_ _ _ _"]]) -> Shaped[Tensor, "B C H W"]:
    """The parts as one; in float where some are, for a folder may mix 8 and 16 bits."""
    parts = [part for part in parts if len(part)] or [torch.empty(0, 0, 0, 0)]
    if len(parts) == 1:
        return parts[0]
    if len({part.dtype for part in parts}) > 1:
        parts = [unit(part) for part in parts]
    return torch.cat(parts)
