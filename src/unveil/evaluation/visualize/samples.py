"""A few samples of a source, as centre views in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...data.collate import collate
from ...data.decode import Unreadable
from ...data.sources import Source, coverage, sampler, spread
from ...data.transforms import Sample, center_cut, center_view, view_of
from ...modeling.rng import sample_keys
from ...modeling.types import Batch, Modality, to_float


@dataclass(frozen=True)
class SampleViews:
    """Centre views of a few samples, evenly spread over a source, with their names and their indices in it."""

    names: list[str]
    places: list[int]
    views: Batch

    def __len__(self) -> int:
        return len(self.places)


def load_samples(source: Source, modalities: Sequence[Modality], size: tuple[int, int], count: int) -> SampleViews:
    """At most `count` samples, evenly spread, that have the first input; unreadable ones are left out."""
    first = next(m for m in modalities if m.role != "output")
    read, (lacks, complete) = sampler(source, first.name), coverage(source)
    places, views = [], []
    for index in spread(len(source), count) if count else []:
        try:
            sample = read(index)
        except Unreadable:
            continue
        if first.name in sample.maps:
            places.append(index)
            views.append(centred(sample, size, modalities, is_plain=lacks is None))
    keys = sample_keys(0, 0, range(len(views)))
    batch = collate(views, keys, modalities, size, lacks, complete)
    return SampleViews([source.name(i) for i in places], places, replace(batch, progress=torch.ones(())))


def first_reason(source: Source, modalities: Sequence[Modality]) -> str:
    """Why the first sample of a source cannot be read, or where to look for it."""
    try:
        sampler(source, next(m for m in modalities if m.role != "output").name)(0)
    except Unreadable as error:
        return str(error)
    return "see `unveil inspect`"


def centred(sample: Sample, size: tuple[int, int], modalities: Sequence[Modality], is_plain: bool) -> Sample:
    """The centre view of a sample, `size` (height, width) large; a plain one is an image without unknown pixels."""
    if is_plain:  # by the resize that evaluations use, to the bit
        return Sample({name: to_float(center_view(image, size)) for name, image in sample.maps.items()})
    views = view_of(sample, center_cut(sample.size, size), size, modalities)
    return replace(views, maps={n: to_float(m) if n not in views.valid else m for n, m in views.maps.items()})
