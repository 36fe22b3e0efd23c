"""Samples of several maps: one frame, one crop and one flip for all; what is missing or unknown is told apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from ..modeling.types import Modality, to_float
from .decode import Unreadable
from .modality_config import Declared
from .read_map import Map
from .sources import Source, Subset
from .transforms import Cut, Resize, center_cut, resize, resize_known, resize_nearest


@dataclass(frozen=True)
class Sample:
    """The maps of one sample, C H W by modality, and where they hold a truth, 1 H W; None: everywhere.

    A map that is not in `valid` is a picture: bytes, or floats in [0, 1], whole. A modality that the sample lacks is
    in neither.
    """

    maps: Mapping[str, Tensor]
    valid: Mapping[str, Tensor | None] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first map: the frame of the sample."""
        first = next(iter(self.maps.values()))
        return first.shape[-2], first.shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.maps.values(), *self.valid.values()) if t is not None)


@runtime_checkable
class SampleSource(Source, Protocol):
    """A source whose samples carry declared maps; `image` is the first of them."""

    @property
    def declared(self) -> tuple[Declared, ...]:
        """The modalities, in the order of the user."""
        ...

    def read(self, index: int) -> dict[str, Map]:
        """The maps of one sample, each at its own size; raises `Unreadable`."""
        ...

    def sample(self, index: int) -> Sample:
        """The maps of one sample, all in one frame; raises `Unreadable` when one of them is broken."""
        ...

    def has(self, index: int) -> tuple[bool, ...]:
        """Which of the modalities a sample has; nothing is read for it."""
        ...

    def complete(self) -> frozenset[str]:
        """The modalities whose maps hold a truth at every pixel, wherever there is a map."""
        ...

    def settled(self, declared: tuple[Declared, ...]) -> SampleSource:
        """The same source, its modalities as the data have settled them."""
        ...


def origin(source: Source) -> tuple[Source, list[int]]:
    """The source below any subsets, and which of its samples these are."""
    numbers = list(range(len(source)))
    while isinstance(source, Subset):
        numbers = [source.indices[i] for i in numbers]
        source = source.source
    return source, numbers


def sampler(source: Source, name: str) -> Callable[[int], Sample]:
    """How to read a sample of a source; an image of a plain one becomes the map of this name."""
    whole, numbers = origin(source)
    if isinstance(whole, SampleSource):
        read = whole.sample
        return lambda index: read(numbers[index])
    return lambda index: Sample({name: source.image(index)})


def as_sample(read: Mapping[str, Map], modalities: Sequence[Modality], name: str) -> Sample:
    """Maps as they were read, as one sample in the frame of the first; raises `Unreadable` where they do not fit."""
    maps = {modality: found.values for modality, found in read.items()}
    valid = {modality: found.valid for modality, found in read.items() if not found.is_picture}
    return in_one_frame(Sample(maps, valid), modalities, name)


def in_one_frame(sample: Sample, modalities: Sequence[Modality], name: str) -> Sample:
    """A sample whose maps all have the size of the first. Raises `Unreadable` for one of another shape.

    Width over height may differ by what rounding a side to pixels explains.
    """
    height, width = size = sample.size
    maps, valid = dict(sample.maps), dict(sample.valid)
    for m in modalities:
        if m.name not in maps or (found := (maps[m.name].shape[-2], maps[m.name].shape[-1])) == size:
            continue
        if abs(found[0] * width - found[1] * height) > max(*found, height, width):
            raise Unreadable(
                name,
                f"{m.name} has {found[1]} x {found[0]} pixels and {next(iter(maps))} {width} x {height}: another"
                " shape, so their pixels do not correspond",
            )
        if m.name in valid:
            maps[m.name], valid[m.name] = _remade(maps[m.name], valid[m.name], m, lambda image, way: way(image, size))
        else:
            maps[m.name] = resize(maps[m.name], size)
    return Sample(maps, valid)


def view_of(sample: Sample, cut: Cut, size: tuple[int, int], modalities: Sequence[Modality]) -> Sample:
    """One view of every map: the same box and flips, each map at `size` over its own stride."""
    maps: dict[str, Tensor] = {}
    valid: dict[str, Tensor | None] = {}
    for m in modalities:
        name, small = m.name, (size[0] // m.stride, size[1] // m.stride)
        if name not in sample.maps:
            continue
        if name not in sample.valid:
            maps[name] = cut.of(sample.maps[name], small)
        else:
            make = partial(_cutting, cut, small)
            maps[name], valid[name] = _remade(sample.maps[name], sample.valid[name], m, make)
    return Sample(maps, valid)


def center_of(sample: Sample, size: tuple[int, int], modalities: Sequence[Modality]) -> Sample:
    """The middle of every map, for evaluation."""
    return view_of(sample, center_cut(sample.size, size), size, modalities)


def _cutting(cut: Cut, size: tuple[int, int], image: Tensor, way: Resize) -> Tensor:
    return cut.of(image, size, way)


def _remade(
    image: Tensor, known: Tensor | None, modality: Modality, make: Callable[[Tensor, Resize], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """A map that is no picture, and what is known of it, at another size: ids by the nearest, else by known pixels."""
    if modality.kind == "categorical":
        return make(image, resize_nearest), None if known is None else make(known, resize_nearest)
    weight = torch.ones_like(image[:1]) if known is None else known.to(image.dtype)
    made = make(torch.cat([image, weight]), resize_known)
    return made[:-1], None if known is None else made[-1:] > 0


@dataclass(frozen=True)
class Stack:
    """Views of several samples as the maps of a batch. `valid` and `present` are empty for a plain source."""

    maps: Mapping[str, Shaped[Tensor, "B C H W"]]
    valid: Mapping[str, Bool[Tensor, "B 1 H W"]] = field(default_factory=dict)
    present: Mapping[str, Bool[Tensor, " B"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return max(map(len, self.maps.values()), default=0)


def lacking(source: Source) -> set[str] | None:
    """The modalities that some samples of a source lack; None for a plain source, whose images are whole."""
    whole, numbers = origin(source)
    if not isinstance(whole, SampleSource):
        return None
    everywhere = [all(has) for has in zip(*(whole.has(i) for i in numbers), strict=True)]
    return {d.name for d, always in zip(whole.declared, everywhere, strict=True) if not always}


def complete(source: Source) -> frozenset[str]:
    """The modalities whose maps hold a truth at every pixel; those of a plain source are not asked."""
    found = origin(source)[0]
    return found.complete() if isinstance(found, SampleSource) else frozenset()


def stack(
    views: Sequence[Sample],
    modalities: Sequence[Modality],
    size: tuple[int, int],
    missing: Collection[str] | None,
    complete: Collection[str] = (),
) -> Stack:
    """Views as a batch: a missing map is zeros that are neither valid nor present.

    `present` tells of the modalities that may be `missing`; with None, a plain source, nothing is told but the maps.
    `valid` tells of all but the `complete` ones, so that a batch says nothing of what lacks nothing.
    """
    if not views:
        return Stack({})
    if missing is None:
        return Stack({m.name: joined([view.maps[m.name][None] for view in views]) for m in modalities})
    maps: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    present: dict[str, Tensor] = {}
    for m in modalities:
        shape = (size[0] // m.stride, size[1] // m.stride)
        dtype = torch.int64 if m.kind == "categorical" else torch.uint8
        empty, known = torch.zeros(m.channels, *shape, dtype=dtype), torch.ones(1, *shape, dtype=torch.bool)
        found = [view.maps.get(m.name) for view in views]
        images = [(empty if image is None else image.to(dtype) if dtype == torch.int64 else image) for image in found]
        maps[m.name] = joined([image[None] for image in images])
        truths = [view.valid.get(m.name) for view in views]
        there = torch.tensor([image is not None for image in found])
        if m.name in complete:
            assert all(truth is None for truth in truths), f"{m.name} is not complete"
        else:
            told = torch.stack([known if truth is None else truth for truth in truths])
            valid[m.name] = told & there[:, None, None, None]
        if m.name in missing:
            present[m.name] = there
    return Stack(maps, valid, present)


def join(parts: Sequence[Stack]) -> Stack:
    """Several stacks of samples as one, in the order given."""
    parts = [part for part in parts if len(part)]
    if len(parts) <= 1:
        return parts[0] if parts else Stack({})
    first = parts[0]
    return Stack(
        {name: joined([part.maps[name] for part in parts]) for name in first.maps},
        {name: torch.cat([part.valid[name] for part in parts]) for name in first.valid},
        {name: torch.cat([part.present[name] for part in parts]) for name in first.present},
    )


def joined(parts: Sequence[Shaped[Tensor, "_ _ _ _"]]) -> Shaped[Tensor, "B C H W"]:
    """The parts as one; in float where some are, for a folder may mix 8 and 16 bits."""
    if len({part.dtype for part in parts}) > 1:
        parts = [to_float(part) for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
