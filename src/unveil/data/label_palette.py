"""The colours of object ids in PNG files with a palette: those of PASCAL VOC and DAVIS, by the bits of an id."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

VOID = 255


def _colours() -> UInt8[np.ndarray, "256 3"]:
    """The bits of an id, three at a time from the lowest, are the highest bits of red, green and blue."""
    ids, colours = np.arange(256), np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> channel & 1) << 7 - place).astype(np.uint8)
        ids = ids >> 3
    return colours


COLOURS = _colours()


def label_png(ids: UInt8[np.ndarray, "H W"]) -> bytes:
    """Object ids as a PNG of 8 bits with the palette, which the server of the DAVIS benchmark reads."""
    image, content = Image.fromarray(ids), io.BytesIO()
    image.putpalette(COLOURS.tobytes())
    image.save(content, "PNG")
    return content.getvalue()
