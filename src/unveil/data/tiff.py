"""TIFF files with more channels than Pillow reads, through the optional package `tifffile`; and the rule for floats."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, Shaped


def is_tiff(data: bytes) -> bool:
    """Whether these bytes start as a TIFF or BigTIFF does, in either byte order."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class ChannelTiff:
    """The first image series of a TIFF: two image axes and at most one of channels, in any order.

    Raises `ValueError` where `tifffile` is missing, or the axes are others.
    """

    def __init__(self, data: bytes) -> None:
        try:
            import tifffile
        except ImportError as error:
            raise ValueError("Pillow cannot read this TIFF; for many channels: pip install tifffile") from error
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

    def pixels(self) -> Shaped[np.ndarray, "C H W"]:
        """All channels: uint8, or float32 in [0, 1]."""
        import tifffile

        array = tifffile.imread(io.BytesIO(self._data), series=0).transpose(self._order)
        array = np.ascontiguousarray(array).reshape(self.channels, *self.size)
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
