"""Views of samples as batches. Their content depends on (seed, epoch, sample) alone, not on threads or on the past."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol, cast

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from ..modeling.rng import SampleRng, mix, sample_keys
from ..modeling.types import Batch, Modality
from ..runs.console import quoted
from ..runs.hardware import num_cores
from .collate import StepMemory, collate, join
from .decode import NoneReadable, Unreadable
from .device_views import Crop, collate_crops, crops_of, join_crops
from .encoded import EncodedPicture, reduction
from .prefetch import prefetch
from .sources import Samples, Source, coverage, encoded_images_of, images_of, origin, sampler
from .transforms import Keys, Sample, View

_CHUNKS = (8, 64)  # the fewest and the most samples that one thread prepares at a time
_DECODED_BYTES = 32 << 20  # of samples that a thread holds before it draws their views
_BATCHES_AHEAD = 2
_REPLACEMENTS_TRIED = 32
_TRIED_BEFORE_STOPPING = 20
_CACHE_BYTES = 2 << 30


class ViewPolicy(Protocol):
    """How samples become views of `image_size` (height, width): each a pure function of the sample and its key."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    def __call__(self, samples: Sequence[Sample], modalities: Sequence[Modality], keys: Keys) -> list[Sample]: ...


class TooManyBroken(ValueError):  # noqa: N818, it says what happened, as `Unreadable` does
    """More images cannot be read than the run accepts."""


@dataclass
class _Chunk:
    """What a thread has read of some rows: the samples at `places` among them, what it tried, and what is broken."""

    samples: list[Sample | EncodedPicture] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


_Prepared = tuple[_Chunk, Batch, Tensor]  # what was read, its views, and the rows that have one


class Loader:
    """Batches of views of a source, prepared ahead by threads.

    `modality` names the image of a plain source, or lists the maps of a source of several. `view` is a `View` for
    pretraining and fine-tuning, a `CenterView` for features, or the view of a dense task. `shard` (k, n) is the k-th of
    n equal shards of every batch, counted from 0: what one of n processes reads.

    Threads, not processes: decoders, resizing and reading release Python's lock, so threads keep every core busy, share
    one cache, and end with Ctrl-C. Decoded samples are cached on first use up to `cache_bytes` (default: a quarter of
    the free memory, at most 2 GB). `wait_seconds` is how long the consumer has waited.

    `unreadable` names the samples that could not be read, with the reason. Each is replaced by another, chosen by the
    sample's key; `TooManyBroken` is raised when more than `max_broken` of the samples tried are broken (beyond what
    chance explains, as long as only a part has been tried). With a `max_broken` of None they are left out of their
    batch instead, and ValueError is raised when none can be read.

    With `repeats` R, a batch holds R views of each of its samples, which is decoded once (Hoffer et al., 2019). An
    epoch is still as many views as there are samples, so it reads one in R of them; R epochs read all. `pinned`
    batches lie in page-locked memory, which a GPU reads while it computes. With `on_device` a batch holds the boxes of
    views of pictures, for `seen_on` to make them.
    """

    def __init__(
        self,
        source: Source | Samples,
        view: ViewPolicy,
        batch_size: int,
        seed: int = 0,
        workers: int | None = None,
        cache_bytes: int | None = None,
        max_broken: float | None = 0.05,
        modality: str | Sequence[Modality] = "rgb",
        shard: tuple[int, int] = (0, 1),
        repeats: int = 1,
        pinned: bool = False,
        on_device: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is too small; give 1 or more")
        if len(source) < 1:
            raise ValueError(f"{source.address} has no images; give a source with at least one")
        self.source, self.view, self.seed = source, view, seed
        self._least = (min(view.image_size),) * 2
        self._sample: Callable[[int], Sample | EncodedPicture]
        self._lacking: set[str] | None = None
        self._complete: frozenset[str] = frozenset()
        if isinstance(modality, str):
            images = cast("Source", source)
            zeros, ones = (0.0,) * images.channels, (1.0,) * images.channels
            self.modalities: tuple[Modality, ...] = (Modality(modality, images.channels, zeros, ones),)
            self._what, self._sample = "images", images_of(images, modality)
        else:
            self.modalities = tuple(modality)
            for m in self.modalities:
                if any(side % m.stride for side in view.image_size):
                    size = " x ".join(map(str, view.image_size))
                    raise ValueError(
                        f"modality {m.name!r} has a pixel for every {m.stride} of the view, which does not divide"
                        f" {size}; give another --image-size, or declare another stride"
                    )
            self._what, self._sample = "samples", sampler(source, self.modalities[0].name)
            self._lacking, self._complete = coverage(source)
        if isinstance(view, View) and (read := encoded_images_of(source, self.modalities[0].name)):
            self._sample = read
        self.batch_size = min(batch_size, len(source))
        self.repeats, self._pinned, self._on_device = repeats, pinned, on_device
        assert not on_device or (isinstance(view, View) and self._lacking is None), "only of pictures"
        assert self.batch_size % repeats == 0, f"{repeats} views of each image do not divide {self.batch_size}"
        self.shard, self.num_shards = shard
        self.workers = max(1, num_cores() if workers is None else workers)
        self.max_broken = max_broken
        self.wait_seconds = 0.0
        self.unreadable: dict[str, str] = {}
        self._tried = bytearray(len(source))
        self._num_tried = 0
        self._cache: dict[int, Sample | EncodedPicture] = {}
        self._damaged: dict[int, str] = {}
        default = min(_CACHE_BYTES, psutil.virtual_memory().available // 4)
        self._cache_left = default if cache_bytes is None else cache_bytes

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; a source smaller than one batch is one batch."""
        return len(self.source) // self.batch_size

    @property
    def is_first_pass(self) -> bool:
        """Whether most samples are still read and decoded, which later epochs take from memory."""
        return self._num_tried < 0.9 * len(self.source) / self.num_shards and self._cache_left > 0

    def order(self, epoch: int) -> Int[Tensor, " N"]:
        """The sample of each view of this epoch, in order: a permutation, or its part with each sample `repeats` times.

        So many epochs are a cycle, which goes through a permutation once.
        """
        cycle, part = divmod(epoch, self.repeats)
        key = sample_keys(self.seed, cycle, torch.arange(len(self.source)))
        order = self._permutation(SampleRng(key).fold("order").key, cycle)
        if self.repeats == 1:
            return order
        count = self.steps_per_epoch * self.batch_size // self.repeats
        return order[part * count :][:count].repeat_interleave(self.repeats)

    def _permutation(self, keys: Int[Tensor, " N"], cycle: int) -> Int[Tensor, " N"]:
        """All samples by their keys; shard by shard where a source copies these one by one."""
        whole, numbers = origin(self.source)
        shards = getattr(whole, "shards", None)
        by_shard = None if shards is None else shards.order(keys, numbers, self.seed, cycle)
        return keys.argsort() if by_shard is None else by_shard  # keys never tie: the hash is a bijection

    def _keyed(self, epoch: int, step: int) -> list[tuple[Tensor, Tensor]]:
        """The samples of each of this process's steps from one on, and the keys of their views.

        The views of a sample in a cycle are those that the epochs of the cycle would show of it one by one.
        """
        order = self.order(epoch)
        places = torch.arange(len(order)) % self.repeats
        first = epoch - epoch % self.repeats
        keys = sample_keys(self.seed, first, order)
        for later in range(1, self.repeats):
            keys = torch.where(places == later, sample_keys(self.seed, first + later, order), keys)
        size, count = self.batch_size, self.steps_per_epoch
        batches = [(order[s * size :][:size], keys[s * size :][:size]) for s in range(step, count)]
        return [(self.own_part(rows), self.own_part(own)) for rows, own in batches]

    def own_part(self, batch: Tensor) -> Tensor:
        """What this process reads of a batch: its samples, or their keys."""
        return batch.tensor_split(self.num_shards)[self.shard]

    def batches(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """The batches of an epoch from a step on; `progress` is 0, the training loop sets it."""
        with closing(self.numbered(epoch, start_step)) as numbered:
            yield from (batch for batch, _ in numbered)

    def endless(self) -> Generator[Batch]:
        """The batches of one epoch after another."""
        for epoch in count():
            with closing(self.batches(epoch)) as batches:
                yield from batches

    def numbered(self, epoch: int, start_step: int = 0) -> Generator[tuple[Batch, Int[Tensor, " B"]]]:
        """The same, each with the numbers of its samples in the source."""
        return self._load(self._keyed(epoch, start_step))

    def in_parts(self, epoch: int, step: int, size: int) -> Generator[tuple[Batch, Int[Tensor, " B"]]]:
        """One batch of an epoch, at most `size` samples at a time, for batches that no memory holds."""
        rows, keys = self._keyed(epoch, step)[0]
        return self._load(list(zip(rows.split(size), keys.split(size), strict=True)))

    def in_order(self) -> Generator[tuple[Batch, Int[Tensor, " B"]]]:
        """All samples once, in the source's order, with their numbers; of n shards each has every n-th batch."""
        steps = torch.arange(len(self.source)).split(self.batch_size)[self.shard :: self.num_shards]
        return self._load([(rows, sample_keys(self.seed, 0, rows)) for rows in steps])

    def whole_samples(self) -> Generator[list[Sample]]:
        """All readable samples once, in order and without a view, a few at a time."""
        count = len(self.source)
        jobs = (partial(self._read_all, r, sample_keys(self.seed, 0, r)) for r in torch.arange(count).split(1))
        samples: list[Sample] = []
        with closing(prefetch(jobs, 2 * self.workers, self.workers)) as chunks:
            for number, chunk in enumerate(chunks, start=1):
                self._note(chunk)
                samples += cast("list[Sample]", chunk.samples)  # no `View`: none is encoded
                if number % _CHUNKS[0] == 0 or number == count or _are_large(samples):
                    yield samples
                    samples = []
        self.check_any()

    def _load(self, steps: Sequence[tuple[Tensor, Tensor]]) -> Generator[tuple[Batch, Int[Tensor, " B"]]]:
        size = min(max(-(-self.batch_size // (self.num_shards * self.workers)), _CHUNKS[0]), _CHUNKS[1])
        size = max(1, size // self.repeats) * self.repeats
        chunks = [rows.split(size) for rows, _ in steps]
        jobs = (job for rows, keys in steps for job in self._jobs(rows, keys, size))
        ahead = (1 + _BATCHES_AHEAD) * max(map(len, chunks), default=1) - 1
        with closing(prefetch(jobs, ahead, self.workers)) as results:
            for step in chunks:
                began = time.perf_counter()
                prepared = [next(results) for _ in step]
                self.wait_seconds += time.perf_counter() - began
                for chunk, _, _ in prepared:  # in the order of the steps
                    self._note(chunk)
                made, rows = [batch for _, batch, _ in prepared], torch.cat([rows for *_, rows in prepared])
                batch = join_crops(made, self._pinned) if self._on_device else join(made)
                if self.max_broken is not None and (len(batch) < sum(map(len, step)) or self._too_many_broken()):
                    raise TooManyBroken(self._broken_report())
                if len(batch):
                    yield batch, rows
                else:
                    self.check_any()

    def _jobs(self, rows: Tensor, keys: Tensor, size: int) -> Iterator[Callable[[], _Prepared]]:
        """What threads do for one step: a part each, all in one memory."""
        memory = StepMemory(len(rows), self._pinned)
        parts = zip(rows.split(size), keys.split(size), range(0, len(rows), size), strict=True)
        return (partial(self._prepare, *part, memory) for part in parts)

    def _note(self, chunk: _Chunk) -> None:
        for index in chunk.tried:
            self._num_tried += not self._tried[index]
            self._tried[index] = 1
        self.unreadable |= {self.source.name(index): reason for index, reason in chunk.broken.items()}

    def _prepare(self, rows: Int[Tensor, " b"], keys: Int[Tensor, " b"], start: int, memory: StepMemory) -> _Prepared:
        """What was read of these rows, its views in the memory from row `start` on, and the rows that have one."""
        try:
            return self._drawn(rows, keys, start, memory)
        except Unreadable:  # of a picture that was decoded only where it was viewed
            return self._drawn(rows, keys, start, memory, decoding=True)

    def _drawn(
        self,
        rows: Int[Tensor, " b"],
        keys: Int[Tensor, " b"],
        start: int,
        memory: StepMemory,
        decoding: bool = False,
    ) -> _Prepared:
        """Views are drawn when a few large photographs have been decoded, so that a thread holds no more of them."""
        chunk = _Chunk()
        views: list[Sample] = []
        crops: list[Crop] = []
        name = self.modalities[0].name

        def draw() -> None:
            own = keys[chunk.places[len(views) + len(crops) :]]
            if self._on_device:
                crops.extend(crops_of(chunk.samples, cast("View", self.view), name, own))
            else:
                views.extend(self.view(cast("list[Sample]", chunk.samples), self.modalities, own))
            chunk.samples.clear()

        held = 0
        for sample in self._read_each(rows, keys, chunk, decoding):
            held += sample.held_nbytes
            if held > _DECODED_BYTES:
                draw()
                held = 0
        draw()
        keys = keys[chunk.places]
        size, missing = self.view.image_size, self._lacking
        if self._on_device:
            return chunk, collate_crops(crops, keys, name, size), rows[chunk.places]
        batch = collate(views, keys, self.modalities, size, missing, self._complete, memory, start)
        return chunk, batch, rows[chunk.places]

    def _read_all(self, rows: Int[Tensor, " b"], keys: Int[Tensor, " b"]) -> _Chunk:
        chunk = _Chunk()
        deque(self._read_each(rows, keys, chunk, decoding=False), maxlen=0)
        return chunk

    def _read_each(
        self, rows: Int[Tensor, " b"], keys: Int[Tensor, " b"], chunk: _Chunk, decoding: bool
    ) -> Iterator[Sample | EncodedPicture]:
        """Into `chunk` the sample of each row or, for a broken one, the first readable replacement of its key."""
        last: tuple[int, Sample | EncodedPicture] | None = None
        for place, (row, key) in enumerate(zip(rows.tolist(), keys, strict=True)):
            for attempt in range(1 if self.max_broken is None else 1 + _REPLACEMENTS_TRIED):
                index = row if attempt == 0 else int(mix(key + attempt)) % len(self.source)
                if index in chunk.broken:
                    continue
                chunk.tried.append(index)
                try:
                    if last is None or last[0] != index:
                        last = (index, self._read(index, decoding))
                        if self.repeats > 1 and isinstance(last[1], EncodedPicture):
                            last = (index, last[1].remembering())
                    sample = last[1]
                except Unreadable as error:
                    chunk.broken[index] = self._damaged[index] = error.reason
                else:
                    chunk.samples.append(sample)
                    chunk.places.append(place)
                    yield sample
                    break

    def _read(self, index: int, decoding: bool = False) -> Sample | EncodedPicture:
        """A sample; a picture that is viewed in full size is decoded where the cache has room for it.

        With `decoding` one that cannot be decoded is found here, else when it is viewed. Raises `Unreadable`.
        """
        if index in self._damaged:
            raise Unreadable(self.source.name(index), self._damaged[index])
        cached = self._cache.get(index)
        sample = cached or self._sample(index)
        if isinstance(sample, EncodedPicture):
            fits = sample.decoded_nbytes <= self._cache_left and reduction(sample.size, self._least) == 1
            if decoding or (fits and cached is None):
                decoded = Sample({sample.modality: sample.pixels()})
                sample = decoded if fits else sample
        if cached is None and sample.nbytes <= self._cache_left:  # threads may overdraw this by a sample each
            self._cache_left -= sample.nbytes
            self._cache[index] = sample
        return sample

    def check_any(self) -> None:
        """Raise ValueError where nothing can be read."""
        if len(self.unreadable) == len(self.source):
            what = f"{len(self.source)} {self._what}"
            first = ": ".join(map(quoted, next(iter(self.unreadable.items()))))
            raise NoneReadable(f"none of the {what} of {self.source.address} can be read; {first}")

    def _too_many_broken(self) -> bool:
        assert self.max_broken is not None
        if self._num_tried < min(_TRIED_BEFORE_STOPPING, len(self.source)):
            return False
        expected = self.max_broken * self._num_tried
        margin = 2 * expected**0.5 if self._num_tried < len(self.source) else 0
        return len(self.unreadable) > expected + margin

    def _broken_report(self) -> str:
        named = "\n".join(f"  {quoted(name)}: {quoted(reason)}" for name, reason in list(self.unreadable.items())[:10])
        more = f"\n  and {len(self.unreadable) - 10} more" if len(self.unreadable) > 10 else ""
        return (
            f"{len(self.unreadable)} of the {self._num_tried} images read so far from {self.source.address} are broken,"
            f" more than {self.max_broken:.0%}:\n{named}{more}\n"
            f"Repair or remove them (`unveil inspect` lists them all), or accept more with a higher max_broken"
        )


def _are_large(samples: Sequence[Sample]) -> bool:
    return sum(sample.nbytes for sample in samples) > _DECODED_BYTES
