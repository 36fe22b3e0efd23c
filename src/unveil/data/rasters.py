"""Windows of large images: of TIFF, JPEG 2000 and .npy without the rest of the file, of other formats cut out of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Shaped

from ..modeling.types import to_float
from ..runs.regular_files import check_regular
from .decode import opaque, read_header, reading, to_channels
from .limits import check_values
from .modality_config import Declared
from .read_map import Map, Stored, map_of, measured, read_map
from .regular_files import read_bytes
from .tiff_files import check_tiff, gdal_driver

Window = tuple[int, int, int, int]  # top, left, height, width
_WINDOWED = (".tif", ".tiff", ".jp2")
_WHOLE_BYTES = 512 << 20  # of images that are read as a whole and kept
_ALPHA, _ALPHAS = "alpha", (1, 2)  # names of GDAL, numbers of TIFF 6.0, section 18
_NODATA = 42113  # the tag of GDAL


class Raster(Protocol):
    """An image file of one modality: its `size` (height, width), and windows of it.

    `channels` are those of the file. `is_whole` says that no pixel can lack data, so that no window need be read to
    know.
    """

    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def is_whole(self) -> bool: ...
    def read(self, window: Window) -> Map: ...


def open_raster(path: Path, name: str, declared: Declared) -> Raster:
    """The raster in a file; its pixels are not read yet. Raises `Unreadable`."""
    suffix = path.suffix.lower()
    reading(name, lambda _: check_regular(path), b"file")
    if suffix == ".npy":
        return reading(name, lambda _: _Array(path, name, declared), b"npy")
    if suffix in (".tif", ".tiff"):
        reading(name, lambda _: _check_bands(path), b"tif")
    if suffix in _WINDOWED and find_spec("rasterio"):
        return reading(name, lambda _: _Gdal.of(path, name, declared), b"tif")
    if suffix in (".tif", ".tiff") and find_spec("tifffile"):
        return reading(name, lambda _: _Tiff.of(path, name, declared), b"tif")
    header = read_header(read_bytes(path, name), name)
    has_alpha = header.has_alpha and not declared.is_categorical
    return _Whole(path, name, declared, header.channels, header.size, has_alpha)


def check_block(height: int, width: int, channels: int) -> None:
    """Raise ValueError for a file whose windows are cut out of tiles or strips that are themselves too large."""
    try:
        check_values((channels, height, width))
    except ValueError as error:
        raise ValueError(f"its smallest part that can be read has {error}") from error


def _check_bands(path: Path) -> None:
    with path.open("rb") as file:
        check_tiff(file, in_windows=True)


def _finished(stored: Stored, declared: Declared, name: str, mask: np.ndarray | None = None) -> Map:
    """The map of a window, valid where the mask H W says so too; a picture grey or of colour, as is declared."""
    channels = declared.modality.channels
    if not declared.is_categorical and {len(stored.values), channels} == {1, 3}:
        made = measured(stored, declared)
        made = replace(made, values=to_channels(made.values, channels, name))
    else:
        made = map_of(stored, declared)
    if mask is None or mask.all():
        return made
    values = made.values if declared.is_categorical else to_float(made.values)
    return Map(values, made.valid, made.stored).only(torch.from_numpy(np.ascontiguousarray(mask))[None])


@dataclass(frozen=True)
class _Facts:
    """What is known of a file without its pixels."""

    path: Path
    name: str
    declared: Declared
    channels: int
    size: tuple[int, int]
    is_whole: bool


class _Gdal(_Facts):
    """A file that rasterio opens for each window, as its handles are not shared by threads; GDAL keeps the blocks."""

    @classmethod
    def of(cls, path: Path, name: str, declared: Declared) -> _Gdal:
        with _opened(path) as file:
            for height, width in file.block_shapes:
                check_block(height, width, len(file.block_shapes))
            kind = np.dtype(file.dtypes[0]).kind
            masked = _has_mask(file) or file.nodata is not None or declared.nodata or declared.void is not None
            return cls(path, name, declared, len(_bands(file)), file.shape, not masked and kind != "f")

    def read(self, window: Window) -> Map:
        top, left, height, width = window
        place = _rasterio().windows.Window(left, top, width, height)

        def read(_: bytes) -> Map:
            with _opened(self.path) as file:
                values = file.read(_bands(file), window=place)
                mask = file.dataset_mask(window=place) > 0 if _has_mask(file) else None
                stored = Stored(values, f"{values.dtype} {file.driver}", file.nodata)
            return _finished(stored, self.declared, self.name, mask)

        return reading(self.name, read, b"raster")


def _bands(file: Any) -> list[int]:
    return [i for i, kind in zip(file.indexes, file.colorinterp, strict=True) if kind.name != _ALPHA]


def _has_mask(file: Any) -> bool:
    """Whether a band of the file says which pixels are there: an internal mask, or alpha."""
    flags = [flag.name for band in file.mask_flag_enums for flag in band]
    return "per_dataset" in flags or _ALPHA in flags


def _rasterio() -> Any:
    import rasterio
    import rasterio.windows

    return rasterio


def _opened(path: Path) -> Any:
    import warnings

    rasterio = _rasterio()
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with path.open("rb") as file:
        driver = gdal_driver(file.read(4))
    return rasterio.open(path, driver=driver)


class _Tiff(_Facts):
    """A TIFF whose tiles or strips tifffile decodes, those of a window alone."""

    @classmethod
    def of(cls, path: Path, name: str, declared: Declared) -> _Tiff:
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            wide = page.tilewidth if page.is_tiled else page.imagewidth
            check_block(page.tilelength if page.is_tiled else page.rowsperstrip, wide, page.samplesperpixel)
            masked = declared.nodata or declared.void is not None or page.extrasamples or _NODATA in page.tags
            channels = page.samplesperpixel - (1 if page.extrasamples and page.extrasamples[-1] in _ALPHAS else 0)
            size = (page.imagelength, page.imagewidth)
            return cls(path, name, declared, channels, size, not masked and page.dtype.kind != "f")

    def read(self, window: Window) -> Map:
        import tifffile

        top, left, height, width = window

        def read(_: bytes) -> Map:
            with tifffile.TiffFile(self.path) as file:
                page = file.pages[0]
                values = np.zeros((page.samplesperpixel, height, width), page.dtype)
                for block, (sample, y, x) in _blocks(page, window):
                    rows = slice(max(top, y), min(top + height, y + block.shape[1]))
                    columns = slice(max(left, x), min(left + width, x + block.shape[2]))
                    cut = block[:, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                    into = values[sample : sample + len(block), rows.start - top : rows.stop - top]
                    into[:, :, columns.start - left : columns.stop - left] = cut
                nodata = page.nodata if _NODATA in page.tags else None
                mask = None
                if page.extrasamples and page.extrasamples[-1] in _ALPHAS:
                    values, mask = values[:-1], values[-1] > 0
            return _finished(Stored(values, f"{values.dtype} TIFF", nodata), self.declared, self.name, mask)

        return reading(self.name, read, b"raster")


def _blocks(page: Any, window: Window) -> Iterator[tuple[Shaped[np.ndarray, "S h w"], tuple[int, int, int]]]:
    """The tiles or strips that a window touches, each with its first sample, row and column."""
    top, left, height, width = window
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    down, across = -(-page.imagelength // tall), -(-page.imagewidth // wide)
    planes = range(page.samplesperpixel) if page.planarconfig == 2 else (0,)
    file, options = page.parent.filehandle, {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    for plane in planes:
        for row in range(top // tall, -(-(top + height) // tall)):
            for column in range(left // wide, -(-(left + width) // wide)):
                index = (plane * down + row) * across + column
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                block, place, shape = page.decode(data, index, **(options if page.jpegtables else {}))
                if block is not None:  # a block of zeros takes no place in the file
                    yield block[0, : shape[1], : shape[2]].transpose(2, 0, 1), (place[0], place[2], place[3])


@dataclass(frozen=True)
class _Array:
    """An `.npy`, mapped into memory: H W, C H W or H W C."""

    path: Path
    name: str
    declared: Declared

    def _mapped(self) -> Shaped[np.ndarray, "C H W"]:
        array: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        channels = self.declared.modality.channels
        if array.ndim == 2:
            return array[None]
        if array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
            array = array.transpose(2, 0, 1)
        if array.ndim != 3:
            raise ValueError(f"an array of shape {array.shape} is no map; H W, C H W or H W C is needed")
        return array

    @property
    def channels(self) -> int:
        return int(self._mapped().shape[0])

    @property
    def size(self) -> tuple[int, int]:
        array = self._mapped()
        return array.shape[1], array.shape[2]

    @property
    def is_whole(self) -> bool:
        no_data = self.declared.nodata or self.declared.void is not None
        return not no_data and self._mapped().dtype.kind != "f"

    def read(self, window: Window) -> Map:
        top, left, height, width = window

        def read(_: bytes) -> Map:
            values = np.array(self._mapped()[:, top : top + height, left : left + width])
            return _finished(Stored(values, f"{values.dtype} npy"), self.declared, self.name)

        return reading(self.name, read, b"raster")


class _Kept:
    """The maps of files that were read as a whole, the latest of them."""

    def __init__(self) -> None:
        self._maps: OrderedDict[tuple[Path, Declared], Map] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, name: str, declared: Declared, has_alpha: bool) -> Map:
        with self._lock:  # held while it is read: the tiles of one image are not decoded by several threads at once
            key = (path, declared)
            if key not in self._maps:
                data = read_bytes(path, name)
                whole = read_map(data, declared, name)
                if has_alpha:
                    whole = replace(whole, values=to_float(whole.values)).only(reading(name, opaque, data))
                self._maps[key] = whole
            self._maps.move_to_end(key)
            while len(self._maps) > 1 and sum(m.values.nbytes for m in self._maps.values()) > _WHOLE_BYTES:
                self._maps.popitem(last=False)
            return self._maps[key]


_kept = _Kept()


@dataclass(frozen=True)
class _Whole:
    """A file of a format that has no windows; it is decoded as a whole, and kept while others of it are read."""

    path: Path
    name: str
    declared: Declared
    channels: int
    size: tuple[int, int]
    has_alpha: bool

    @property
    def is_whole(self) -> bool:
        no_data = self.declared.nodata or self.declared.void is not None or self.has_alpha
        return not no_data and self.path.suffix.lower() not in (".tif", ".tiff", ".dcm", ".npz")

    def read(self, window: Window) -> Map:
        top, left, height, width = window
        whole = _kept.read(self.path, self.name, self.declared, self.has_alpha)
        rows, columns = slice(top, top + height), slice(left, left + width)
        valid = None if whole.valid is None else whole.valid[:, rows, columns]
        if valid is not None and bool(valid.all()):
            valid = None
        return replace(whole, values=whole.values[:, rows, columns], valid=valid)
