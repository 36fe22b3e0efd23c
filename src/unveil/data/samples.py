"""Samples of several maps: one frame, one crop and one flip for all; missing maps and unknown pixels are marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..modeling.types import Modality
from .decode import Unreadable
from .modality_config import Declared
from .read_map import Map
from .resize import Resize, resize, resize_known, resize_nearest
from .sources import Source, Subset


@dataclass(frozen=True)
class Sample:
    """The maps of one sample, C H W by modality, and their valid pixels, 1 H W; None: all.

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
class Samples(Protocol):
    """Numbered samples, each the maps of declared modalities in one frame."""

    @property
    def address(self) -> str:
        """Where they were opened, as the user wrote it."""
        ...

    @property
    def declared(self) -> tuple[Declared, ...]:
        """The modalities, in the order of the user."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name of a sample for people."""
        ...

    def sample(self, index: int) -> Sample:
        """The maps of one sample, all in one frame; raises `Unreadable` when one of them is broken."""
        ...

    def has(self, index: int) -> tuple[bool, ...]:
        """Which of the modalities a sample has; nothing is read for it."""
        ...

    def complete(self) -> frozenset[str]:
        """The modalities whose maps are valid at every pixel, wherever there is a map."""
        ...


@runtime_checkable
class SampleSource(Samples, Source, Protocol):
    """A source whose samples carry declared maps; `image` is the first of them."""

    def read(self, index: int) -> dict[str, Map]:
        """The maps of one sample, each at its own size; raises `Unreadable`."""
        ...

    def settled(self, declared: tuple[Declared, ...]) -> SampleSource:
        """The same source, its modalities as the data have settled them."""
        ...


def origin(source: Source | Samples) -> tuple[Source | Samples, list[int]]:
    """The source below any subsets, and which of its samples these are."""
    numbers = list(range(len(source)))
    while isinstance(source, Subset):
        numbers = [source.indices[i] for i in numbers]
        source = source.source
    return source, numbers


def images_of(source: Source, name: str) -> Callable[[int], Sample]:
    """A reader of the images of a source, each as a sample of one map of this name."""
    return lambda index: Sample({name: source.image(index)})


def sampler(source: Source | Samples, name: str) -> Callable[[int], Sample]:
    """A reader of the samples of a source; an image of a plain one becomes the map of this name."""
    whole, numbers = origin(source)
    if isinstance(whole, Samples):
        read = whole.sample
        return lambda index: read(numbers[index])
    return images_of(cast("Source", source), name)


def as_sample(read: Mapping[str, Map], modalities: Sequence[Modality], name: str) -> Sample:
    """Maps as they were read, as one sample in the frame of the first; raises `Unreadable` where they do not fit."""
    maps = {modality: m.values for modality, m in read.items()}
    valid = {modality: m.valid for modality, m in read.items() if not m.is_picture}
    return in_one_frame(Sample(maps, valid), modalities, name)


def in_one_frame(sample: Sample, modalities: Sequence[Modality], name: str) -> Sample:
    """A sample whose maps all have the size of the first. Raises `Unreadable` for one of another shape.

    Width over height may differ by what rounding a side to pixels explains.
    """
    height, width = size = sample.size
    maps, valid = dict(sample.maps), dict(sample.valid)
    for m in modalities:
        if m.name not in maps or (own := (maps[m.name].shape[-2], maps[m.name].shape[-1])) == size:
            continue
        if abs(own[0] * width - own[1] * height) > max(*own, height, width):
            raise Unreadable(
                name,
                f"{m.name} has {own[1]} x {own[0]} pixels and {next(iter(maps))} {width} x {height}: another"
                " shape, so their pixels do not correspond",
            )
        if m.name in valid:
            maps[m.name], valid[m.name] = resize_map(
                maps[m.name], valid[m.name], m, lambda image, way: way(image, size)
            )
        else:
            maps[m.name] = resize(maps[m.name], size)
    return Sample(maps, valid)


def resize_map(
    image: Tensor, known: Tensor | None, modality: Modality, make: Callable[[Tensor, Resize], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """A map that is no picture, and what is known of it, at another size: ids by the nearest, else by known pixels."""
    if modality.kind == "categorical":
        return make(image, resize_nearest), None if known is None else make(known, resize_nearest)
    weight = torch.ones_like(image[:1]) if known is None else known.to(image.dtype)
    made = make(torch.cat([image, weight]), resize_known)
    return made[:-1], None if known is None else made[-1:] > 0


def lacking(source: Source | Samples) -> set[str] | None:
    """The modalities that some samples of a source lack; None for a plain source, whose images are whole."""
    whole, numbers = origin(source)
    if not isinstance(whole, Samples):
        return None
    everywhere = [all(has) for has in zip(*(whole.has(i) for i in numbers), strict=True)]
    return {d.name for d, always in zip(whole.declared, everywhere, strict=True) if not always}


def complete(source: Source | Samples) -> frozenset[str]:
    """The modalities whose maps are valid at every pixel; none of a plain source."""
    whole = origin(source)[0]
    return whole.complete() if isinstance(whole, Samples) else frozenset()
