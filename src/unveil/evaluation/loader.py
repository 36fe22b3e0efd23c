"""Batches of random views of labelled images: pure functions of (seed, epoch, image), prepared ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.decode import Unreadable
from ..data.transforms import View, draw_cuts
from ..modeling.rng import SampleRng, sample_keys
from ..modeling.types import to_float
from ..runs.hardware import reading_threads
from .datasets import LabelledImages

CHUNK = 32  # images that one thread prepares at a time
AHEAD = 2  # batches


@dataclass(frozen=True)
class Views:
    """Views of some labelled images, in bytes or in [0, 1], and each image's source of chance."""

    images: Tensor
    labels: Int[Tensor, " B"]
    key: Int[Tensor, " B"]

    def on(self, device: torch.device) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"], SampleRng]:
        """The images in [0, 1], the labels and the chance, on a device."""
        images, labels, key = (x.to(device, non_blocking=True) for x in (self.images, self.labels, self.key))
        return to_float(images), labels, SampleRng(key)


class Reader:
    """Labelled images, read again and again; decoded ones are kept, up to a quarter of the free memory.

    Images that cannot be read are left out of their batch and named in `unreadable`.
    """

    def __init__(self, images: LabelledImages, view: View, batch_size: int, seed: int):
        self.images, self.view, self.seed = images, view, seed
        self.batch_size = min(batch_size, len(images))
        self.unreadable: dict[str, str] = {}
        self._cache: dict[int, Tensor] = {}
        self._room = min(4 << 30, psutil.virtual_memory().available // 4)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; another remainder is left out every time."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int) -> Generator[Views]:
        """The batches of one epoch in its own order."""
        order = SampleRng(sample_keys(self.seed, epoch, range(len(self.images)))).fold("order").key.argsort()
        batches = order[: self.steps_per_epoch * self.batch_size].split(self.batch_size)
        pool = reading_threads()
        pending: deque[list[Future[Views]]] = deque()
        try:
            for ahead, rows in enumerate(batches):
                pending.append([pool.submit(self._prepare, part, epoch) for part in rows.split(CHUNK)])
                if ahead >= AHEAD:
                    yield from self._joined(pending.popleft())
            while pending:
                yield from self._joined(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _joined(self, futures: Sequence[Future[Views]]) -> Generator[Views]:
        """The batch, unless none of its images can be read."""
        parts = [part for part in (future.result() for future in futures) if len(part.labels)]
        if len({part.images.dtype for part in parts}) > 1:
            parts = [Views(to_float(part.images), part.labels, part.key) for part in parts]
        if parts:
            columns = ((part.images, part.labels, part.key) for part in parts)
            yield Views(*(torch.cat(column) for column in zip(*columns, strict=True)))
        elif len(self.unreadable) == len(self.images):
            raise ValueError(f"none of the {len(self.images)} images of {self.images.source.address} can be read")

    def _prepare(self, rows: Int[Tensor, " b"], epoch: int) -> Views:
        kept, found = [], []
        for row in rows.tolist():
            try:
                found.append(self._image(row))
                kept.append(row)
            except Unreadable as error:
                self.unreadable[self.images.name(row)] = error.reason
        labels = torch.tensor([self.images.numbers[row] for row in kept], dtype=torch.int64)
        key = sample_keys(self.seed, epoch, kept)
        cuts = draw_cuts([(image.shape[-2], image.shape[-1]) for image in found], self.view, key)
        views = [cut.of(image, self.view.image_size) for cut, image in zip(cuts, found, strict=True)]
        if len({view.dtype for view in views}) > 1:
            views = [to_float(view) for view in views]
        return Views(torch.stack(views) if views else torch.empty(0), labels, key)

    def _image(self, row: int) -> Tensor:
        if row in self._cache:
            return self._cache[row]
        image = self.images.image(row)
        if image.nbytes <= self._room:  # threads may overdraw this by an image each
            self._room -= image.nbytes
            self._cache[row] = image
        return image
