"""Large images in strips: what is measured of their pixels needs no second copy of them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

from jaxtyping import Shaped
from torch import Tensor

from .cut_files import check_whole
from .decode import alone, pixels_of, read_header, reading, to_channels
from .limits import open_image

LARGE = 1 << 24  # pixels, beyond which an image is looked at in strips
_FORMATS = ("PNG", "WEBP", "BMP")  # a JPEG has no copy in Pillow, and TIFFs have bands and pages of their own


def in_strips(data: bytes, name: str, channels: int, pixels: int) -> Iterator[Shaped[Tensor, "C h W"]] | None:
    """The pixels of a large encoded image of 8 bits, some lines at once, of about so many pixels; None for any other.

    They are those of `decode` with this many channels, not turned by EXIF orientation. Raises `Unreadable`.
    """
    header = read_header(data, name)
    if math.prod(header.size) <= LARGE or header.format not in _FORMATS or header.bits > 8:
        return None
    return _strips(data, name, channels, pixels)


def _strips(data: bytes, name: str, channels: int, pixels: int) -> Iterator[Shaped[Tensor, "C h W"]]:
    def load(data: bytes) -> None:
        check_whole(data)
        image.load()

    with alone, reading(name, lambda data: open_image(io.BytesIO(data)), data) as image:
        reading(name, load, data)
        image.info.pop("exif", None)  # a turned strip would be no wrong one, but have other lines
        lines = max(1, pixels // image.width)
        for top in range(0, image.height, lines):
            strip = image.crop((0, top, image.width, min(top + lines, image.height)))
            yield to_channels(pixels_of(strip, name), channels, name)
