"""TIFF files: what their first page declares, read without a library, and those of more channels than Pillow knows."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from .extras import optional
from .limits import check_size
from .picture_arrays import in_range

_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of whole numbers: bytes, of 16, 32 and 64 bits
_MOST = 1 << 20  # numbers of a tag that are read
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _ROWS = 256, 257, 258, 259, 277, 278
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 273, 279, 324, 325


def is_tiff(data: bytes) -> bool:
    """Whether these bytes start as a TIFF or BigTIFF does, in either byte order."""
    return data[:4] in _MARKS


def gdal_driver(start: bytes) -> str:
    """The driver of GDAL for a file that starts so. Left to itself GDAL would read a VRT, too, whatever its name, and
    with it all files and addresses that one names."""
    return "GTiff" if is_tiff(start) else "JP2OpenJPEG"


@dataclass(frozen=True)
class TiffPage:
    """What the first page of a TIFF declares; `pieces` are offset and size in bytes of its strips or tiles."""

    height: int
    width: int
    samples: int
    bits: int
    compression: int
    is_tiled: bool
    pieces: tuple[tuple[int, int], ...]


def first_page(file: BinaryIO) -> TiffPage | None:
    """The first page of a TIFF (TIFF 6.0, section 2; BigTIFF); None where its directory cannot be read."""
    try:
        return _first_page(file)
    except (struct.error, KeyError, IndexError, OverflowError, ValueError):  # decoders say what is wrong with it
        return None


def _first_page(file: BinaryIO) -> TiffPage | None:
    file.seek(0)
    mark = file.read(4)
    if not is_tiff(mark):
        return None
    order, is_big = "<" if mark[:2] == b"II" else ">", b"+" in mark
    word, entry, count_format = ("Q", 20, "Q") if is_big else ("I", 12, "H")

    def number(kind: str, data: bytes) -> int:
        return int(struct.unpack(order + kind, data[: struct.calcsize(kind)])[0])

    file.seek(8 if is_big else 4)
    file.seek(number(word, file.read(8)))
    count = number(count_format, file.read(8 if is_big else 2))
    rows = file.read(entry * min(count, 4096))
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(rows) - entry + 1, entry):
        tag, kind = struct.unpack(order + "HH", rows[start : start + 4])
        number_of = number(word, rows[start + 4 : start + entry])
        if kind not in _FORMATS or not number_of > 0:
            continue
        code = f"{min(number_of, _MOST)}{_FORMATS[kind]}"
        inside = rows[start + 4 + struct.calcsize(word) : start + entry]
        if struct.calcsize(f"={number_of}{_FORMATS[kind]}") > len(inside):
            file.seek(number(word, inside))
            inside = file.read(struct.calcsize(f"={code}"))
        size = struct.calcsize(f"={code}")
        if len(inside) >= size:
            tags[tag] = struct.unpack(order + code, inside[:size])
    is_tiled = _TILES in tags
    places, sizes = (tags.get(tag, ()) for tag in ((_TILES, _TILE_SIZES) if is_tiled else (_STRIPS, _STRIP_SIZES)))
    return TiffPage(
        height=tags[_LENGTH][0],
        width=tags[_WIDTH][0],
        samples=tags.get(_SAMPLES, (1,))[0],
        bits=tags.get(_BITS, (1,))[0],
        compression=tags.get(_COMPRESSION, (1,))[0],
        is_tiled=is_tiled,
        pieces=tuple(zip(places, sizes, strict=False)),
    )


def check_tiff(file: BinaryIO, *, in_windows: bool = False) -> None:
    """Raise ValueError for a TIFF whose first page is too large, or has too many bands though read `in_windows`."""
    if (page := first_page(file)) is not None:
        height, width = (1, 1) if in_windows else (page.height, page.width)
        check_size(height, width, page.samples, max(1, page.bits // 8))


class ChannelTiff:
    """The first image series of a TIFF: two image axes and at most one of channels, in any order.

    Raises `ValueError` where `tifffile` is missing, or the axes are others.
    """

    def __init__(self, data: bytes) -> None:
        tifffile = optional("tifffile", "Pillow cannot read this TIFF; for many channels: pip install tifffile")
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            self._series = file.series[0]
        shape, axes = self._series.shape, self._series.axes
        others = [i for i, axis in enumerate(axes) if axis not in "YX"]
        if not {"Y", "X"} <= set(axes) or len(others) > 1:
            raise ValueError(f"a TIFF of shape {shape} and axes {axes} is no image with channels")
        self._order = (*others, axes.index("Y"), axes.index("X"))
        self.channels = shape[others[0]] if others else 1
        self.size: tuple[int, int] = (shape[axes.index("Y")], shape[axes.index("X")])
        self.dtype: np.dtype = self._series.dtype
        self._data = data
        check_size(*self.size, self.channels, self.dtype.itemsize)

    def pixels(self) -> Shaped[np.ndarray, "C H W"]:
        """All channels: uint8, or float32 in [0, 1]."""
        import tifffile

        array = tifffile.imread(io.BytesIO(self._data), series=0).transpose(self._order)
        return in_range(np.ascontiguousarray(array).reshape(self.channels, *self.size))
