"""The mask of one object, as polygons or as run lengths, and its pixels in an image or in a view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray


@dataclass(frozen=True)
class Window:
    """Where the pixels of a view lie in an image: the place x of the image is `(x - left) * scale` in the view.

    Both directions have their own scale; a mirrored view counts from its right side. `height` and `width` are those of
    the view.
    """

    height: int
    width: int
    top: float = 0.0
    left: float = 0.0
    scale_y: float = 1.0
    scale_x: float = 1.0
    mirrored: bool = False
    made_width: float = 0.0  # of the part of a mirrored view that is image

    def points(self, points: Float64[ndarray, "P 2"]) -> Float64[ndarray, "P 2"]:
        """Places (x, y) of the image in the view."""
        x, y = (points[:, 0] - self.left) * self.scale_x, (points[:, 1] - self.top) * self.scale_y
        return np.stack([self.made_width - x if self.mirrored else x, y], axis=1)

    def boxes(self, boxes: Float64[ndarray, "N 4"]) -> Float64[ndarray, "N 4"]:
        """Boxes (x0, y0, x1, y1) of the image in the view, not cut to it."""
        first, last = self.points(boxes[:, :2]), self.points(boxes[:, 2:])
        return np.concatenate([np.minimum(first, last), np.maximum(first, last)], axis=1)


class InstanceMask(Protocol):
    """The pixels of one object, in whatever form a file has them."""

    def bitmap(self, window: Window) -> Bool[ndarray, "H W"]:
        """Which pixels of a view, at their centres, belong to the object."""

    def as_coco(self) -> Any:
        """The `segmentation` of a COCO annotation."""


@dataclass(frozen=True)
class Polygons:
    """The union of polygons of at least three corners (x, y), in pixels of the image."""

    rings: tuple[Float64[ndarray, "P 2"], ...]

    def bitmap(self, window: Window) -> Bool[ndarray, "H W"]:
        filled = np.zeros((window.height, window.width), bool)
        for ring in self.rings:
            filled |= fill(window.points(ring), window.height, window.width)
        return filled

    def as_coco(self) -> list[list[float]]:
        return [ring.ravel().tolist() for ring in self.rings]


@dataclass(frozen=True)
class RunLengths:
    """Runs of pixels down the columns of an image of a size: first so many outside the object, then inside, ..."""

    height: int
    width: int
    counts: Int64[ndarray, " R"]

    def pixels(self) -> Bool[ndarray, "H W"]:
        """The mask of the whole image, row by row."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.width, self.height).T

    def bitmap(self, window: Window) -> Bool[ndarray, "H W"]:
        x = np.arange(window.width) + 0.5
        x = window.made_width - x if window.mirrored else x
        columns = np.floor(x / window.scale_x + window.left).astype(int)
        rows = np.floor((np.arange(window.height) + 0.5) / window.scale_y + window.top).astype(int)
        there = ((rows >= 0) & (rows < self.height))[:, None] & (columns >= 0) & (columns < self.width)
        near = self.pixels()[rows.clip(0, self.height - 1)][:, columns.clip(0, self.width - 1)]
        whole: Bool[ndarray, "H W"] = near & there
        return whole

    def as_coco(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts.tolist()}

    @classmethod
    def of(cls, pixels: Bool[ndarray, "H W"]) -> RunLengths:
        """The run lengths of a mask that is given as pixels."""
        flat = pixels.T.ravel()
        edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
        bounds = np.concatenate([[0], edges, [flat.size]])
        counts = np.diff(bounds)
        if flat.size and flat[0]:
            counts = np.concatenate([[0], counts])
        return cls(pixels.shape[0], pixels.shape[1], counts.astype(np.int64))


def fill(ring: Float64[ndarray, "P 2"], height: int, width: int) -> Bool[ndarray, "H W"]:
    """The pixels of an image whose centres lie inside a polygon, by the even-odd rule; none of a line or a point."""
    x, y = ring.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    low, high = np.minimum(y, next_y), np.maximum(y, next_y)
    first = np.ceil(low - 0.5).clip(0, height).astype(int)  # the rows whose centres an edge crosses, low <= y < high
    last = np.ceil(high - 0.5).clip(0, height).astype(int)
    edges = np.repeat(np.arange(len(ring)), last - first)
    starts = np.repeat(np.cumsum(last - first) - (last - first), last - first)
    rows = np.arange(len(edges)) - starts + first[edges]
    share = (rows + 0.5 - y[edges]) / (next_y - y)[edges]
    crossing = x[edges] + share * (next_x - x)[edges]
    columns = np.ceil(crossing - 0.5).clip(0, width).astype(int)
    flips = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(flips, (rows, columns), 1)
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(bool)


def decoded(text: str) -> Int64[ndarray, " R"]:
    """The run lengths of COCO's compressed form: numbers of 5 bits a letter, from the third on the difference to the
    one before the last. Raises ValueError for a text that is none.
    """
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its compressed counts are cut or damaged")
    counts: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("its compressed counts hold a number that no image has")
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return np.array(counts, np.int64)


def run_lengths(counts: str | Sequence[int], height: int, width: int) -> RunLengths:
    """Run lengths, compressed or not, of an image of this size. Raises ValueError where they do not fill it."""
    runs = decoded(counts) if isinstance(counts, str) else np.array(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or (len(runs) and int(runs.min()) < 0):
        raise ValueError("its counts are no list of whole numbers from 0")
    if len(runs) > height * width + 1 or int(runs.sum(dtype=np.float64)) != height * width:
        raise ValueError(f"its counts do not add up to {width} x {height} pixels")
    return RunLengths(height, width, runs.astype(np.int64))
