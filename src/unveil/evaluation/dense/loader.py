"""Samples with a truth at every pixel, as batches of random views: pure functions of (seed, epoch, sample)."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from ...data.collate import collate
from ...data.decode import Unreadable
from ...data.dense_dataset import DenseSet
from ...data.samples import Sample
from ...modeling.rng import SampleRng, sample_keys
from ...modeling.types import Batch, Modality
from ...runs.hardware import reading_threads
from .transforms import DenseView

AHEAD = 2  # batches
CHUNK = 8  # samples that one thread prepares at a time


class DenseReader:
    """Samples read again and again; decoded ones are kept, up to a quarter of the free memory.

    Those that cannot be read are left out of their batch and named in `unreadable`.
    """

    def __init__(self, samples: DenseSet, modalities: Sequence[Modality]):
        self.samples, self.modalities = samples, tuple(modalities)
        self.unreadable: dict[str, str] = {}
        self._cache: dict[int, Sample] = {}
        self._room = min(4 << 30, psutil.virtual_memory().available // 4)

    def epoch(self, view: DenseView, batch_size: int, seed: int, epoch: int) -> Generator[Batch]:
        """Full batches of views, in the epoch's own order; a set smaller than one is one batch."""
        size = min(batch_size, len(self.samples))
        order = SampleRng(sample_keys(seed, epoch, range(len(self.samples)))).fold("order").key.argsort()
        batches = order[: len(order) // size * size].split(size)
        pool = reading_threads()
        pending: deque[list[Future[tuple[list[Sample], list[int]]]]] = deque()
        try:
            for ahead, rows in enumerate(batches):
                pending.append([pool.submit(self._views, part, view, seed, epoch) for part in rows.split(CHUNK)])
                if ahead >= AHEAD:
                    yield from self._joined(pending.popleft(), view.size, seed, epoch)
            while pending:
                yield from self._joined(pending.popleft(), view.size, seed, epoch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def each(self) -> Iterator[list[Sample]]:
        """All samples that can be read, a few at a time, in order."""
        pool = reading_threads()
        pending: deque[Future[list[Sample]]] = deque()
        rows = torch.arange(len(self.samples))
        try:
            for part in rows.split(CHUNK):
                pending.append(pool.submit(self._samples, part))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self._check()

    def _joined(
        self, futures: Sequence[Future[tuple[list[Sample], list[int]]]], size: tuple[int, int], seed: int, epoch: int
    ) -> Iterator[Batch]:
        parts = [future.result() for future in futures]
        views, rows = [v for part in parts for v in part[0]], [row for part in parts for row in part[1]]
        if views:
            yield collate(views, sample_keys(seed, epoch, rows), self.modalities, size)
        else:
            self._check()

    def _views(self, rows: Int[Tensor, " b"], view: DenseView, seed: int, epoch: int) -> tuple[list[Sample], list[int]]:
        found, kept = self._read(rows)
        return view.draw(found, self.modalities, SampleRng(sample_keys(seed, epoch, kept))), kept

    def _samples(self, rows: Int[Tensor, " b"]) -> list[Sample]:
        return self._read(rows)[0]

    def _read(self, rows: Int[Tensor, " b"]) -> tuple[list[Sample], list[int]]:
        found, kept = [], []
        for row in rows.tolist():
            try:
                found.append(self._sample(row))
                kept.append(row)
            except Unreadable as error:
                self.unreadable[self.samples.names[row]] = error.reason
        return found, kept

    def _sample(self, row: int) -> Sample:
        if row in self._cache:
            return self._cache[row]
        sample = self.samples.sample(row, self.modalities)
        if sample.nbytes <= self._room:  # threads may overdraw this by a sample each
            self._room -= sample.nbytes
            self._cache[row] = sample
        return sample

    def _check(self) -> None:
        if len(self.unreadable) == len(self.samples):
            name, reason = next(iter(self.unreadable.items()))
            raise ValueError(
                f"none of the {len(self.samples)} samples of {self.samples.address} can be read; {name}: {reason}"
            )
