"""Batches of random views. What is in them depends on (seed, epoch, sample) alone, not on threads or on the past."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from ..modeling.rng import SampleRng, mix, sample_keys
from ..modeling.types import Batch, Modality
from ..runs.hardware import num_cores, reading_threads
from .decode import Unreadable
from .samples import Sample, Stack, complete, join, lacking, sampler, stack, view_of
from .sources import Source
from .transforms import View, draw_cuts

_CHUNKS = (16, 64)  # the fewest and the most samples that one thread prepares at a time
_BATCHES_AHEAD = 2
_REPLACEMENTS_TRIED = 32
_TRIED_BEFORE_STOPPING = 20


class TooManyBroken(ValueError):  # noqa: N818
    """More images cannot be read than the run was told to accept."""


@dataclass(frozen=True)
class _Chunk:
    """What a thread made of some samples; a sample without a readable replacement has no view."""

    views: Stack
    tried: list[int]
    broken: dict[int, str]


class Loader:
    """Batches of random views of a source, prepared ahead by threads.

    `modality` names the one map of a plain source, or lists those of a source of several. `part` (k, n) is the k-th of
    n equal parts of every batch, counted from 0: what one of n processes reads.

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
        modality: str | Sequence[Modality] = "rgb",
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is too small; give 1 or more")
        if len(source) < 1:
            raise ValueError(f"{source.address} has no images; give a source with at least one")
        self.source, self.view, self.seed = source, view, seed
        self.modalities = _modalities(modality, source, view)
        self._sample = sampler(source, self.modalities[0].name)
        self._lacking, self._complete = lacking(source), complete(source)
        self.batch_size = min(batch_size, len(source))
        self.part, self.parts = part
        self.workers = max(1, num_cores() if workers is None else workers)
        self.max_broken = max_broken
        self.wait_seconds = 0.0
        self.broken: dict[str, str] = {}
        self._tried = bytearray(len(source))
        self._num_tried = 0
        self._cache: dict[int, Sample] = {}
        self._cache_left = min(2 << 30, psutil.virtual_memory().available // 4) if cache_bytes is None else cache_bytes

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; a source smaller than one batch is one batch."""
        return len(self.source) // self.batch_size

    def order(self, epoch: int) -> Int[Tensor, " N"]:
        """The samples in the order of this epoch, a permutation."""
        key = sample_keys(self.seed, epoch, torch.arange(len(self.source)))
        return SampleRng(key).fold("order").key.argsort()  # keys never tie: the hash is a bijection

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on; `progress` is 0, the training loop knows better."""
        order = self.order(epoch)
        steps = [order[s * self.batch_size :][: self.batch_size] for s in range(start_step, self.steps_per_epoch)]
        steps = [samples.tensor_split(self.parts)[self.part] for samples in steps]
        size = min(max(-(-self.batch_size // (self.parts * self.workers)), _CHUNKS[0]), _CHUNKS[1])
        pool = reading_threads(self.workers)
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
        views = join([chunk.views for chunk in chunks])
        self.wait_seconds += time.perf_counter() - began
        for chunk in chunks:
            for index in chunk.tried:
                self._num_tried += not self._tried[index]
                self._tried[index] = 1
            for index, reason in chunk.broken.items():
                self.broken[self.source.name(index)] = reason
        if len(views) < len(key) or self._too_many_broken():
            raise TooManyBroken(self._broken_report())
        return Batch(views.maps, key, torch.zeros(()), views.valid, views.present)

    def _prepare(self, samples: Int[Tensor, " b"], key: Int[Tensor, " b"]) -> _Chunk:
        tried: list[int] = []
        broken: dict[int, str] = {}
        read = [self._readable(s, k, tried, broken) for s, k in zip(samples.tolist(), key, strict=True)]
        kept = [i for i, sample in enumerate(read) if sample is not None]
        found = [sample for sample in read if sample is not None]
        cuts = draw_cuts([sample.size for sample in found], self.view, key[kept])
        size = self.view.image_size
        views = [view_of(sample, cut, size, self.modalities) for sample, cut in zip(found, cuts, strict=True)]
        return _Chunk(stack(views, self.modalities, size, self._lacking, self._complete), tried, broken)

    def _readable(self, sample: int, key: Int[Tensor, ""], tried: list[int], broken: dict[int, str]) -> Sample | None:
        """The sample's maps, or those of the first readable replacement that its key leads to."""
        for attempt in range(1 + _REPLACEMENTS_TRIED):
            index = sample if attempt == 0 else int(mix(key + attempt)) % len(self.source)
            if index in broken:
                continue
            tried.append(index)
            try:
                return self._read(index)
            except Unreadable as error:
                broken[index] = error.reason
        return None

    def _read(self, index: int) -> Sample:
        if index in self._cache:
            return self._cache[index]
        sample = self._sample(index)
        if sample.nbytes <= self._cache_left:  # threads may overdraw this by a sample each
            self._cache_left -= sample.nbytes
            self._cache[index] = sample
        return sample

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


def _modalities(told: str | Sequence[Modality], source: Source, view: View) -> tuple[Modality, ...]:
    """The maps of a batch; a name alone stands for what a plain source holds. Their strides have to divide the view."""
    if isinstance(told, str):
        blank = (0.0,) * source.channels, (1.0,) * source.channels
        return (Modality(told, source.channels, *blank),)
    for m in told:
        if any(side % m.stride for side in view.image_size):
            raise ValueError(
                f"modality {m.name!r} has a pixel for every {m.stride} of the view, which does not divide"
                f" {' x '.join(map(str, view.image_size))}; give another --image-size, or declare another stride"
            )
    return tuple(told)
