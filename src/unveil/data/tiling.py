"""Tiles of rasters that are not resized as a whole: where they lie, and how an address asks for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIN_VALID = 0.25  # of a tile's pixels: below it there is little to see or predict


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `size` pixels a side, neighbours with `overlap` in common.

    Those of which less than `min_valid` is inside the image and has data are passed over.
    """

    size: int
    overlap: int = 0
    min_valid: float = MIN_VALID

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"--tile {self.size}: a side in pixels is needed, such as 512")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"--tile-overlap {self.overlap}: pixels below the {self.size} of --tile are needed")
        if not 0 <= self.min_valid <= 1:
            raise ValueError(f"--tile-valid {self.min_valid}: a share between 0 and 1 is needed")

    def corners(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Top and left of the tiles of an image of this size (height, width) by rows; the last reach over its edges."""
        step = self.size - self.overlap
        rows, columns = (range(0, max(1, side - self.overlap), step) for side in size)
        return [(top, left) for top in rows for left in columns]

    def share_inside(self, corner: tuple[int, int], size: tuple[int, int]) -> float:
        """How much of a tile lies inside an image of this size (height, width)."""
        inside = [min(self.size, side - start) for start, side in zip(corner, size, strict=True)]
        return inside[0] * inside[1] / self.size**2


def split_tiling(address: str) -> tuple[str, Tiling | None]:
    """An address without the tiles that it asks for, `scenes/:tile=512,overlap=64,valid=0.5`, and these."""
    match = re.fullmatch(r"(?s)(.*?):tile=(\d+)(?:,overlap=(\d+))?(?:,valid=([\d.]+))?", address)
    if match is None:
        return address, None
    place, size, overlap, valid = match.groups()
    return place, Tiling(int(size), int(overlap or 0), float(valid or MIN_VALID))


def with_tiles(address: str, size: int | None, overlap: int = 0, min_valid: float = MIN_VALID) -> str:
    """The address of tiles of this size of what lies there; the same without a size. Raises ValueError, as `Tiling`."""
    if size is None:
        if overlap or min_valid != MIN_VALID:
            raise ValueError("--tile-overlap and --tile-valid are of --tile; give it too, or leave them out")
        return address
    tiling = Tiling(size, overlap, min_valid)
    more = (f",overlap={overlap}" if overlap else "") + (f",valid={min_valid:g}" if min_valid != MIN_VALID else "")
    return f"{split_tiling(address)[0]}:tile={tiling.size}{more}"
