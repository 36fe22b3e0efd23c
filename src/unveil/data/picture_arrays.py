"""Arrays as pictures: bytes as they are, more bits as floats in [0, 1]."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from .limits import check_npy

_STRIP = 1 << 24  # pixels that are copied at once
NPY = b"\x93NUMPY"  # how an array of numpy begins


def picture_array(data: bytes) -> Shaped[np.ndarray, "C H W"]:
    """The picture that an `.npy` of a pack holds; ValueError for any other array."""
    check_npy(io.BytesIO(data), len(data))
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim != 3 or array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"an array of {array.dtype} {array.shape} is no picture; C H W of 8 or 16 bits are needed")
    return array


def in_range(array: np.ndarray) -> Shaped[np.ndarray, "*_"]:
    """Bytes as they are, 16 bits and floats as float32 in [0, 1]; ValueError for numbers of no known range."""
    if array.dtype == np.uint16:
        return (array / 65535.0).astype(np.float32)
    if array.dtype.kind == "f":
        return in_unit(array)
    if array.dtype == np.uint8:
        return array
    raise ValueError(f"its {array.dtype} pixels have no known range; save it as 8 or 16 bit")


def in_unit(array: np.ndarray) -> Float[np.ndarray, "*_"]:
    """Float pixels as float32, once they are known to be finite and in [0, 1]: no scale is guessed."""
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{bad} of its values are NaN or infinite")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(f"its float values lie in [{low:.4g}, {high:.4g}]; scale them to [0, 1]")
    return array.astype(np.float32)


def array_of(image: Image.Image) -> Shaped[np.ndarray, "H W *C"]:
    """The numbers of an image; of a large one in strips, for Pillow copies what it hands over twice."""
    width, height = image.size
    if width * height <= _STRIP:
        return np.array(image)
    line, rows = np.asarray(image.crop((0, 0, width, 1))), max(1, _STRIP // width)
    array = np.empty((height, *line.shape[1:]), line.dtype)
    for top in range(0, height, rows):
        array[top : top + rows] = np.asarray(image.crop((0, top, width, min(top + rows, height))))
    return array
