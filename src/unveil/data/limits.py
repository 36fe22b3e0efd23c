"""How large an image may be, which is known from its header before anything of it is decoded."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Sequence
from functools import cache
from typing import IO

import numpy as np
from PIL import Image, ImageFile

MAX_PIXELS = 178_956_970  # of one channel; where Pillow, too, refuses an image as a decompression bomb
MAX_CHANNELS = 4096
PIXELS = "UNVEIL_MAX_PIXELS"  # of the environment: another limit
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "SUN", "DDS"),
    *("QOI", "ICO", "PSD"),
)
_VALUES, _BYTES = 3, 12  # for each pixel of the limit: three channels, in single precision
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_image(file: IO[bytes] | str | os.PathLike[str]) -> ImageFile.ImageFile:
    """The image in a file, as Pillow opens it, of the formats that are read by themselves.

    Of the others some start another program (EPS: Ghostscript), and none is one of pictures for training.
    """
    max_pixels()  # which sets that of Pillow
    return Image.open(file, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit is ours
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def max_pixels() -> int:
    """The most pixels of one channel: `MAX_PIXELS`, or what the environment says. Raises ValueError for no number."""
    given = os.environ.get(PIXELS, "")
    if not given:
        return MAX_PIXELS
    if not given.isdecimal() or not int(given):
        raise ValueError(f"{PIXELS}={given} is no whole number above 0; give the most pixels that an image may have")
    Image.MAX_IMAGE_PIXELS = int(given)  # beyond twice as many Pillow refuses an image by itself
    return int(given)


def check_size(height: int, width: int, channels: int = 1, itemsize: int = 1) -> None:
    """Raise ValueError for an image that is too large to be decoded, `itemsize` bytes for each value."""
    if height * width > max_pixels():
        raise ValueError(
            f"{width} x {height} pixels are more than {max_pixels():,}: a decompression bomb? {other_way()}"
        )
    if channels > MAX_CHANNELS:
        raise ValueError(f"it declares {channels:,} channels, and more than {MAX_CHANNELS:,} are not read: a bomb?")
    check_values((channels, height, width), itemsize)


def check_values(shape: Sequence[int], itemsize: int = 1) -> None:
    """Raise ValueError for an array of more than 3 values, or 12 bytes, for each pixel that an image may have."""
    count = math.prod(shape)
    if count > _VALUES * max_pixels() or count * itemsize > _BYTES * max_pixels():
        size = " x ".join(map(str, shape))
        raise ValueError(f"{size} values of {itemsize} bytes are too many to be read at once: a bomb? {other_way()}")


def other_way() -> str:
    """What to do about an image that is too large, as a message ends."""
    return f"Where it is meant, cut it into tiles (--tile 512), or raise {PIXELS}"


def check_npy(file: IO[bytes], size: int) -> None:
    """Raise ValueError for an `.npy` of `size` bytes whose header declares more than there is, or than is read."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an .npy of version {version} holds no plain numbers")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read; save plain numbers")
    check_values(shape, dtype.itemsize)
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"the file is truncated: its header declares {dtype} {shape}")


def check_npz(data: bytes, key: str) -> None:
    """`check_npy` of one array of an `.npz`, without reading its numbers; nothing is said where it has none so called.

    Raises zipfile.BadZipFile.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.filename in (key, f"{key}.npy"):
                with archive.open(info) as file:
                    check_npy(file, info.file_size)
