"""Photographs that are decoded where they are viewed, and no larger than the view needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxtyping import Shaped
from torch import Tensor

from .decode import decode, jpeg_size, to_channels

_REDUCTIONS = (8, 4, 2)  # of a side, by libjpeg-turbo's inverse DCT; the others that JPEG knows are slow in it
_MARGIN = 2  # pixels that are left a side for each of the view, so that the antialiased resize decides what is seen


@dataclass(frozen=True)
class EncodedPicture:
    """A plain JPEG as the sample of one map, called `modality`; `size` (height, width) is known from its header.

    At full size its pixels are those of `decode`, to the bit. Reduced by 2, 4 or 8, each is about the mean of so many
    by so many.
    """

    modality: str
    name: str
    data: bytes
    channels: int
    size: tuple[int, int]
    decoded: dict[int, Tensor] | None = field(default=None, repr=False, compare=False)  # by reduction

    @property
    def nbytes(self) -> int:
        return len(self.data)

    @property
    def held_nbytes(self) -> int:
        """The bytes that it may take while it is viewed."""
        return self.nbytes if self.decoded is None else self.nbytes + self.decoded_nbytes

    def remembering(self) -> EncodedPicture:
        """The same picture, for several views: it is decoded once for each reduction, and holds the pixels."""
        return replace(self, decoded={})

    @property
    def decoded_nbytes(self) -> int:
        return self.channels * self.size[0] * self.size[1]

    def pixels(self, reduction: int = 1) -> Shaped[Tensor, "C h w"]:
        """All pixels, each side divided by `reduction` and rounded up, or in full where the reader cannot reduce it.

        Raises `Unreadable` for a file that is damaged behind its header.
        """
        if self.decoded is not None and reduction in self.decoded:
            return self.decoded[reduction]
        pixels = to_channels(decode(self.data, self.name, reduction), self.channels, self.name)
        if self.decoded is not None:
            self.decoded[reduction] = pixels
        return pixels


def encoded_picture(modality: str, name: str, data: bytes, channels: int) -> EncodedPicture | None:
    """The encoded picture in a plain JPEG; None for anything else."""
    size = jpeg_size(data)
    return None if size is None else EncodedPicture(modality, name, data, channels, size)


def reduction(box: tuple[int, int], size: tuple[int, int]) -> int:
    """How much smaller a box (height, width) may be decoded to be viewed at `size`: 1, 2, 4 or 8 times a side."""
    fits = (by for by in _REDUCTIONS if all(b >= by * _MARGIN * s for b, s in zip(box, size, strict=True)))
    return next(fits, 1)
