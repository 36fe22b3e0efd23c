"""Large images as tiles: each tile is a sample, read by its window alone, where there is no data marked as such."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch.nn.functional import pad

from ..modeling.types import Modality, to_float
from ..runs.cache import cached, store
from ..runs.console import user_path
from .aligned_folders import AlignedSource, open_samples
from .decode import Unreadable
from .modality_config import RGB, Declared
from .prefetch import prefetch
from .rasters import Raster, open_raster
from .read_map import Map
from .source_bases import DeclaredSamples
from .sources import FolderSource, open_source
from .tiling import Tiling, split_tiling

_KIND = "tiles-1"  # of entries in the user's cache: the shares of valid pixels of a file's tiles
_AHEAD = 16
Size = tuple[int, int]


@dataclass(frozen=True)
class Tiled:
    """The images that tiles are cut from: `paths` has the file of each modality that an image has."""

    names: Sequence[str]
    paths: Sequence[Mapping[str, Path]] = field(repr=False)
    labels: Sequence[int] | None
    classes: list[str] | None
    passed_over: Mapping[str, int]


def open_tiles(address: str, declared: tuple[Declared, ...] = (), channels: int | None = None) -> TiledSource:
    """The tiles at an address `FOLDER:tile=512[,overlap=64][,valid=0.5]`: of its images, or of aligned folders.

    Without `declared` modalities the images are called rgb, of as many channels as the first has. All windows lie in
    the frame of the first modality that an image has; maps of another size have the same windows in proportion. Tiles
    of which too little is valid in that modality are passed over: files that may lack data are read for that once, and
    the shares kept in the user's cache. Raises ValueError where no tile is left, and for data that is not in files.
    """
    place, tiling = split_tiling(address)
    assert tiling is not None, f"{address} asks for no tiles"
    images, declared = _images(place, declared, channels)
    numbers: list[int] = []
    corners: list[tuple[int, int]] = []
    sizes: list[Size] = []
    counts: Counter[str] = Counter(images.passed_over)
    jobs = (partial(_tiles_of, paths, name, declared, tiling) for name, paths in _each(images))
    with closing(prefetch(jobs, _AHEAD)) as results:
        for number, (size, chosen, dropped) in enumerate(results):
            sizes.append(size)
            corners += chosen
            numbers += [number] * len(chosen)
            if dropped:
                counts["tile of few valid pixels"] += dropped
    if not numbers:
        raise ValueError(
            f"{address!r} has no tile of which {tiling.min_valid:.0%} has data; {len(images.names)} images were read:"
            " give a smaller --tile, or a lower --tile-valid"
        )
    places = np.array([(n, *corner) for n, corner in zip(numbers, corners, strict=True)], np.int32)
    return TiledSource(address, tiling, declared, images, places, sizes, dict(counts))


def _each(images: Tiled) -> Iterator[tuple[str, Mapping[str, Path]]]:
    return zip(images.names, images.paths, strict=True)


def _images(place: str, declared: tuple[Declared, ...], channels: int | None) -> tuple[Tiled, tuple[Declared, ...]]:
    """What tiles are cut from, and its modalities."""
    if declared and (len(declared) > 1 or not _is_plain(place, declared[0])):
        source = open_samples(place, declared)
        if not isinstance(source, AlignedSource) or source.masks or _lie_in_arrays(source):
            raise ValueError(
                f"{place!r}: tiles are cut of image files in a folder for each modality, without folders of masks;"
                " leave --tile out, or write the maps as files, masked pixels as no data"
            )
        paths = [
            {d.name: source.root / path for d in declared if (path := source.files[d.name][row]) is not None}
            for row in range(len(source))
        ]
        return Tiled(source.stems, paths, source.labels, source.classes, source.passed_over), declared
    folder = open_source(place, channels or 3)
    if not isinstance(folder, FolderSource):
        raise ValueError(
            f"{place!r}: tiles are cut of image files in a folder; leave --tile out, or write them as files"
        )
    if not declared:
        count = channels or _channels_of(folder)
        declared = (RGB if count == 3 else replace(RGB, modality=_blank(count)),)
    paths = [{declared[0].name: folder.root / name} for name in folder.names]
    return Tiled(folder.names, paths, folder.labels, folder.classes, folder.passed_over), declared


def _lie_in_arrays(source: AlignedSource) -> bool:
    files = (file for paths in source.files.values() for file in paths.names)
    return any("#" in file or file.endswith(".hdf5") for file in files)


def _is_plain(place: str, declared: Declared) -> bool:
    """Whether the images of a modality lie in the folder itself and not in one of its name."""
    return not (user_path(place) / declared.folder).is_dir()


def _blank(channels: int) -> Modality:
    return Modality("rgb", channels, (0.0,) * channels, (1.0,) * channels)


def _channels_of(folder: FolderSource) -> int:
    """The number of channels of the first image that can be opened; 3 where none can (reading says why)."""
    for name in folder.names:
        try:
            return open_raster(folder.root / name, name, RGB).channels
        except Unreadable:
            continue
    return 3


def _tiles_of(
    paths: Mapping[str, Path], name: str, declared: Sequence[Declared], tiling: Tiling
) -> tuple[Size, list[tuple[int, int]], int]:
    """The size of an image, its tiles of which enough is valid, and how many others it has.

    One that cannot be opened has one tile, whose reading says why.
    """
    first = next(d for d in declared if d.name in paths)
    try:
        raster = open_raster(paths[first.name], name, first)
        corners = tiling.corners(raster.size)
        shares = [tiling.share_inside(corner, raster.size) for corner in corners]
        if not raster.is_whole:
            shares = _shares(raster, paths[first.name], first, tiling, corners, shares)
    except Unreadable:
        return (tiling.size, tiling.size), [(0, 0)], 0
    chosen = [corner for corner, share in zip(corners, shares, strict=True) if share >= tiling.min_valid]
    return raster.size, chosen, len(corners) - len(chosen)


def _shares(
    raster: Raster, path: Path, declared: Declared, tiling: Tiling, corners: list[tuple[int, int]], inside: list[float]
) -> list[float]:
    """How much of each tile is valid, from the cache or by reading every tile that could have enough."""
    state = path.stat()
    what = [tiling.size, tiling.overlap, tiling.min_valid, list(declared.nodata), declared.void, declared.scale]
    key = json.dumps([str(path.resolve()), state.st_size, state.st_mtime_ns, declared.name, *what])
    if (entry := cached(_KIND, key)) is not None and len(entry) == 8 * len(corners):
        return [float(share) for share in np.frombuffer(entry, np.float64)]
    shares = []
    for (top, left), most in zip(corners, inside, strict=True):
        if most < tiling.min_valid:
            shares.append(most)
            continue
        window = (top, left, min(tiling.size, raster.size[0] - top), min(tiling.size, raster.size[1] - left))
        valid = raster.read(window).valid
        shares.append(most if valid is None else most * float(valid.float().mean()))
    store(_KIND, key, np.array(shares, np.float64).tobytes())
    return shares


@dataclass(frozen=True)
class TiledSource(DeclaredSamples):
    """Tiles of images; `places` are image, top and left of each. A tile is called `FILE[TOP:BOTTOM,LEFT:RIGHT]`.

    A tile over the edge of its image is filled up with zeros that are not valid.
    """

    address: str
    tiling: Tiling
    declared: tuple[Declared, ...]
    images: Tiled = field(repr=False)
    places: Int[np.ndarray, "N 3"] = field(repr=False)
    sizes: Sequence[Size] = field(repr=False)
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labels(self) -> list[int] | None:
        """The class of the image that each tile is of."""
        labels = self.images.labels
        return None if labels is None else [labels[number] for number in self.places[:, 0]]

    @property
    def classes(self) -> list[str] | None:
        return self.images.classes

    def _window(self, index: int) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of the tile as far as it lies inside its image."""
        number, top, left = self.places[index].tolist()
        height, width = self.sizes[number]
        return top, min(top + self.tiling.size, height), left, min(left + self.tiling.size, width)

    def _paths(self, index: int) -> Mapping[str, Path]:
        return self.images.paths[int(self.places[index, 0])]

    def name(self, index: int) -> str:
        top, bottom, left, right = self._window(index)
        return f"{self.images.names[self.places[index, 0]]}[{top}:{bottom},{left}:{right}]"

    def location(self, index: int) -> str:
        """The path of the file of the first map, and the window in it."""
        top, bottom, left, right = self._window(index)
        path = next(iter(self._paths(index).values()))
        return f"{path.resolve()}[{top}:{bottom},{left}:{right}]"

    def content(self, index: int) -> bytes:
        """What stands for the pixels of the tile, which are not read for it: where they lie."""
        return self.location(index).encode(errors="surrogateescape")

    def has(self, index: int) -> tuple[bool, ...]:
        return tuple(d.name in self._paths(index) for d in self.declared)

    def complete(self) -> frozenset[str]:
        """None is: tiles reach over edges, and files may lack data."""
        return frozenset()

    def _map(self, index: int, declared: Declared) -> Map:
        name, (top, bottom, left, right) = self.name(index), self._window(index)
        try:
            raster = open_raster(self._paths(index)[declared.name], name, declared)
        except Unreadable as error:
            raise Unreadable(name, error.reason) from error
        frame, own, side = self.sizes[self.places[index, 0]], raster.size, self.tiling.size
        if abs(own[0] * frame[1] - own[1] * frame[0]) > max(*own, *frame):
            raise Unreadable(
                name,
                f"{declared.name} has {own[1]} x {own[0]} pixels and the first map {frame[1]} x {frame[0]}: another"
                " shape, so their pixels do not correspond",
            )
        rows, columns = (
            [round(edge * o / f) for edge in edges]
            for edges, o, f in zip(((top, bottom), (left, right)), own, frame, strict=True)
        )
        window = (rows[0], columns[0], max(1, rows[1] - rows[0]), max(1, columns[1] - columns[0]))
        whole = (max(1, round(side * own[0] / frame[0])), max(1, round(side * own[1] / frame[1])))
        return _filled(raster.read(window), whole, declared)


def _filled(stored: Map, size: Size, declared: Declared) -> Map:
    """The map with zeros that are not valid below it and to its right, up to this size (height, width)."""
    height, width = stored.values.shape[-2:]
    below, right = max(0, size[0] - height), max(0, size[1] - width)
    if not below and not right:
        return stored
    valid = torch.ones(1, height, width, dtype=torch.bool) if stored.valid is None else stored.valid
    values = stored.values if declared.is_categorical else to_float(stored.values)
    edges = (0, right, 0, below)
    return Map(pad(values, edges), pad(valid, edges), stored.stored)
