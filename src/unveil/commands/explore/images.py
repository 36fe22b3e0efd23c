"""The images of a page: held-out samples of the first run, or of `--data`, and what is uploaded."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import torch
from PIL import Image

from ...data.aligned_folders import open_images
from ...data.collate import collate
from ...data.decode import Unreadable, read_header, to_channels
from ...data.modality_config import BUILT_IN, Declared
from ...data.read_map import read_map
from ...data.sources import Source, class_of, sampler
from ...data.transforms import Sample, in_one_frame
from ...evaluation.visualize.samples import centred
from ...modeling.rng import sample_keys
from ...modeling.types import Batch, to_float
from ...reporting.pictures import Picture, viewable
from ...runs.console import log
from .models import Explored

MAX_UPLOAD = 48 << 20  # bytes
MAX_PIXELS = 64_000_000  # of an uploaded picture
_KEPT = 24  # samples in memory


@dataclass(frozen=True)
class Chosen:
    """A sample by its id: its name, its maps as they were read, and its class where it has one."""

    id: str
    name: str
    sample: Sample
    label: str | None = None


@dataclass(frozen=True)
class Gallery:
    """The samples to choose from; none, with a note that says why, where there are no data. `first` names its image."""

    source: Source | None
    declared: tuple[Declared, ...] = ()
    first: str = "rgb"
    note: str = ""

    def __len__(self) -> int:
        return 0 if self.source is None else len(self.source)


def open_gallery(explored: Sequence[Explored], data: str | None) -> Gallery:
    """Samples that the run with the most modalities was not trained on, or all those of `data`.

    Raises what opening `data` raises; data of a run that have moved leave a gallery without samples.
    """
    widest = max(explored, key=lambda one: len(one.modalities))
    first = explored[0].inputs[0] if explored else "rgb"
    if widest.run is None and data is None:
        return Gallery(None, first=first, note="A public ViT has no images of its own: upload one, or give --data.")
    try:
        if widest.run is None:
            assert data is not None
            source: Source = open_images(data)
        else:
            source = widest.run.held_out() if data is None else widest.run.open_data(data)
    except (OSError, ValueError) as error:
        if data is not None:
            raise
        log(f"note: the images of {widest.name} are not shown: {error}")
        note = f"The images of the run are not there: {error}. Upload one, or give --data."
        return Gallery(None, widest.declared, first, note)
    return Gallery(source, widest.declared, first)


@dataclass
class Images:
    """Samples by their ids, `s:NUMBER` of the gallery and `u:CHECKSUM` of uploads; the last few stay in memory."""

    gallery: Gallery
    _kept: OrderedDict[str, Chosen] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def get(self, key: str) -> Chosen:
        """A sample. Raises ValueError for an id that there is not, and `Unreadable`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        number = key.removeprefix("s:")
        if not key.startswith("s:") or not number.isdecimal() or int(number) >= len(self.gallery):
            raise ValueError("this image is not in memory any more; choose or upload it again")
        return self._keep(self.read(int(number)))

    def read(self, row: int) -> Chosen:
        """The sample in a row of the gallery, which is not kept. Raises `Unreadable`."""
        source = self.gallery.source
        assert source is not None
        sample = sampler(source, self.gallery.first)(row)
        return Chosen(f"s:{row}", source.name(row), sample, class_of(source, row))

    def upload(self, data: bytes, name: str, modality: str, onto: str = "") -> Chosen:
        """A file as a sample, or as another map of the sample with the id `onto`. Raises `Unreadable`."""
        own = {d.name: d for d in self.gallery.declared} or {self.gallery.first: BUILT_IN["rgb"]}
        declared = own.get(modality) or BUILT_IN["rgb"]
        if modality not in own:
            raise ValueError(f"no run here reads {modality!r}; there are {', '.join(own)}")
        if not declared.is_categorical and data[:6] != b"\x93NUMPY":
            height, width = read_header(data, name).size
            if height * width > MAX_PIXELS:
                raise Unreadable(name, f"{width:,} x {height:,} pixels are more than {MAX_PIXELS:,}: make it smaller")
        read = read_map(data, declared, name)
        maps, valid = {modality: read.values}, {} if read.is_picture else {modality: read.valid}
        if onto:
            old = self.get(onto)
            maps, valid = {**old.sample.maps, **maps}, {**old.sample.valid, **valid}
            name = old.name
        first = self.gallery.first
        maps = {key: maps[key] for key in sorted(maps, key=lambda key: key != first)}
        sample = in_one_frame(Sample(maps, valid), [d.modality for d in self.gallery.declared], name)
        digest = hashlib.blake2b(data + onto.encode() + modality.encode(), digest_size=10).hexdigest()
        return self._keep(Chosen(f"u:{digest}", name, sample))

    def _keep(self, chosen: Chosen) -> Chosen:
        with self._lock:
            self._kept[chosen.id] = chosen
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return chosen


def batch_of(chosen: Chosen, explored: Explored) -> Batch:
    """A sample as a batch of one for a model: its centre view, what it lacks marked. Raises `Unreadable`.

    A model of one modality reads the first map of a sample where none has its name.
    """
    maps, valid = dict(chosen.sample.maps), dict(chosen.sample.valid)
    size, modalities = explored.extractor.image_size, explored.modalities
    if len(explored.inputs) == 1 and explored.inputs[0] not in maps:
        first = next(iter(maps))
        if first in valid or modalities[0].kind == "categorical":
            raise Unreadable(chosen.name, f"has no map of {explored.inputs[0]}, which {explored.name} reads")
        maps = {explored.inputs[0]: maps[first]}
    here = [m for m in modalities if m.name in maps]
    if not any(m.name in explored.inputs for m in here):
        needed = " or ".join(explored.inputs)
        raise Unreadable(chosen.name, f"has no map of {needed}, which {explored.name} reads")
    maps = {
        m.name: maps[m.name] if m.name in valid else to_channels(maps[m.name], m.channels, chosen.name) for m in here
    }
    valid = {name: v for name, v in valid.items() if name in maps}
    lacks = {m.name for m in modalities} - maps.keys()
    is_plain = not lacks and not valid and len(modalities) == 1
    view = centred(Sample(maps, valid), size, here, is_plain)
    missing = None if is_plain else lacks
    keys = sample_keys(0, 0, [0])
    complete = [name for name in maps if valid.get(name) is None]
    batch = collate([view], keys, modalities, size, missing, complete)
    return replace(batch, progress=torch.ones(())).on(explored.extractor.device)


def thumbnail(chosen: Chosen, side: int = 96) -> Picture:
    """The first map of a sample, its longer side so many pixels; a measured one is stretched to its own range."""
    values = to_float(next(iter(chosen.sample.maps.values()))).numpy()
    if values.max(initial=0) > 1 or values.min(initial=0) < 0:
        low, high = np.percentile(values, (1, 99))
        values = (values - low) / max(high - low, 1e-12)
    image = Image.fromarray(viewable(values))
    scale = side / max(image.size)
    return np.asarray(image.resize([max(1, round(length * scale)) for length in image.size]))
