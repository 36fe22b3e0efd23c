"""What a sample becomes in a pack: its maps at the size of the pack, each encoded as a member of a shard."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt16
from PIL import Image
from torch import Tensor

from .decode import decode, read_header, to_channels
from .file_ends import Ends
from .identity import identity
from .modality_config import DEPTH, RGB, Declared
from .shard_samples import PIXELS, VOID
from .sources import EncodedSource, SampleSource, Source
from .splits import locations
from .transforms import Sample, at_size, resize

_TOP = np.iinfo(np.uint16).max
_PNG_LEVEL = 2  # of zlib: photographs are 6 % larger than at level 6, in a quarter of the time


@dataclass(frozen=True)
class Encoding:
    """How maps are stored: no longer than `short_side` along their short side, JPEG of this quality, or `lossless`."""

    short_side: int | None = 256
    quality: int = 90
    lossless: bool = False

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (height, width) that a map of this one is stored at; it is never enlarged."""
        if self.short_side is None or min(size) <= self.short_side:
            return size
        height, width = (max(1, round(side * self.short_side / min(size))) for side in size)
        return height, width


@dataclass(frozen=True)
class PackedSample:
    """A sample as a pack has it: its members by suffix, its size (height, width), and the identity of its content."""

    members: dict[str, bytes]
    size: tuple[int, int]
    identity: int


def packed(source: Source, index: int, encoding: Encoding) -> PackedSample:
    """A sample of a source as a pack has it; raises `Unreadable`."""
    if isinstance(source, SampleSource):
        return _packed_maps(source, index, encoding)
    name = source.name(index)
    data = source.encoded(index) if isinstance(source, EncodedSource) else b""
    pixels = decode(data, name) if data else source.image(index)
    if len(pixels) > 1 or source.channels != 3:  # grey is repeated when it is read
        pixels = to_channels(pixels, source.channels, name)
    size = encoding.size((pixels.shape[-2], pixels.shape[-1]))
    is_kept = data and tuple(pixels.shape[-2:]) == size and (data[:3] == b"\xff\xd8\xff" or _is_png(data, name))
    if is_kept and (encoding.lossless or data[:3] == b"\xff\xd8\xff"):  # it loses nothing, and takes no time
        members = {"jpg" if data[:3] == b"\xff\xd8\xff" else "png": data}
    else:
        suffix, content = picture(resize(pixels, size), encoding, as_jpeg=not encoding.lossless)
        members = {suffix.removeprefix("pixels."): content}
    return PackedSample(members, size, _identity(source, index, data))


def _is_png(data: bytes, name: str) -> bool:
    return data[:4] == b"\x89PNG" and read_header(data, name).bits <= 8


def _identity(source: Source, index: int, content: bytes) -> int:
    known = getattr(source, "identities", None)
    if known is not None:
        return int(known[index])
    if not content:
        read = getattr(source, "content", None)
        content = read(index) if read else locations_of(source, index)
    return identity(Ends.within(content))


def locations_of(source: Source, index: int) -> bytes:
    """What stands for the content of a rendered sample: the settings that it is rendered from."""
    location = getattr(source, "location", None)
    return str(location(index) if location else locations(source)[index]).encode(errors="surrogateescape")


def _packed_maps(source: SampleSource, index: int, encoding: Encoding) -> PackedSample:
    read, name = source.read(index), source.name(index)
    declared = {d.name: d for d in source.declared}
    valid = {name: m.valid for name, m in read.items() if not m.is_picture}
    sample = Sample({name: m.values for name, m in read.items()}, valid)
    size = encoding.size(sample.size)
    sample = at_size(sample, size, [d.modality for d in source.declared], name)
    members = {}
    for modality, values in sample.maps.items():
        if modality not in sample.valid:
            is_photo = len(values) == 3 or modality == RGB.name  # the values of other maps are measured
            suffix, content = picture(values, encoding, as_jpeg=is_photo and not encoding.lossless)
        elif declared[modality].is_categorical:
            suffix, content = class_ids(values, sample.valid[modality], declared[modality])
        else:
            suffix, content = measured(values, sample.valid[modality], declared[modality], encoding)
        members[f"{modality}.{suffix}"] = content
    return PackedSample(members, size, _identity(source, index, b""))


def picture(pixels: Shaped[Tensor, "C H W"], encoding: Encoding, as_jpeg: bool) -> tuple[str, bytes]:
    """A picture, bytes or floats in [0, 1], as the extension of its file and the content.

    Bytes of one or three channels become a JPEG or a PNG. Others keep 16 bits: grey as a PNG, more channels as an
    array; where floats are no 16 bits and nothing may be lost, they stay floats.
    """
    array = pixels.numpy()
    is_plain = len(array) in (1, 3)
    if array.dtype == np.uint8 and is_plain:
        if as_jpeg:
            upright = np.ascontiguousarray(array.transpose(1, 2, 0))
            space = "GRAY" if len(array) == 1 else "RGB"
            subsampling = "GRAY" if len(array) == 1 else "420"
            return "jpg", bytes(simplejpeg.encode_jpeg(upright, encoding.quality, space, subsampling))
        return "png", _png(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    if array.dtype != np.uint8:
        deep = np.rint(array.astype(np.float64) * _TOP).astype(np.uint16)
        is_equal = np.array_equal((deep / 65535.0).astype(np.float32), array)
        if is_equal or not encoding.lossless:
            array = deep
    if array.dtype == np.uint16 and len(array) == 1:
        return "png", _png(array[0])
    return PIXELS, _npy(array)


def measured(
    values: Shaped[Tensor, "C H W"], valid: Tensor | None, declared: Declared, encoding: Encoding
) -> tuple[str, bytes]:
    """A measured map in its unit as the extension of its file and the content.

    With a declared scale it becomes 16-bit numbers of that scale, as its source has them: a PNG, or an array of several
    channels. Where these cannot hold it, or nothing may be lost and they would lose some, floats with NaN.
    """
    array = values.numpy().astype(np.float32)
    known = np.ones(array.shape[1:], bool) if valid is None else valid[0].numpy()
    stored = _as_stored(array, known, declared, exact=encoding.lossless)
    if stored is None:
        return "npy", _npy(np.where(known, array, np.float32(np.nan)))
    return ("png", _png(stored[0])) if len(stored) == 1 else ("npy", _npy(stored))


def _as_stored(
    array: np.ndarray, known: np.ndarray, declared: Declared, exact: bool
) -> UInt16[np.ndarray, "C H W"] | None:
    """A map as numbers of 16 bits that read as it by its declaration; None where there are none."""
    if declared.scale is None:
        return None
    none = [int(number) for number in declared.nodata if 0 <= number <= _TOP and float(number).is_integer()]
    if not known.all() and not none:
        return None
    numbers = np.rint((array.astype(np.float64) - declared.offset) / declared.scale)
    lowest = 1 if declared.name == DEPTH.name else 0  # of a depth, 0 and below is no distance
    if known.any() and (numbers[:, known].min() < min(lowest, 0) or numbers[:, known].max() > _TOP):
        return None
    numbers = numbers.clip(lowest, _TOP)
    for number in none:  # a value that rounds to the sign of no data takes the next number
        numbers[numbers == number] += 1 if number < _TOP else -1
    read = (numbers * declared.scale + declared.offset).astype(np.float32)
    if exact and not np.array_equal(read[:, known], array[:, known]):
        return None
    return np.where(known, numbers, none[0] if none else 0).astype(np.uint16)


def class_ids(values: Shaped[Tensor, "1 H W"], valid: Tensor | None, declared: Declared) -> tuple[str, bytes]:
    """Class ids as the extension of their file and the content: a PNG with the declared void, else an array with -1."""
    ids = values[0].numpy().astype(np.int64)
    known = np.ones(ids.shape, bool) if valid is None else valid[0].numpy()
    void = declared.void if declared.void is not None else next((int(n) for n in declared.nodata), None)
    if not known.all() and (void is None or not 0 <= void <= _TOP):
        return "npy", _npy(np.where(known, ids, VOID)[None].astype(np.int32))
    ids = np.where(known, ids, void or 0)
    if ids.max(initial=0) > _TOP:
        return "npy", _npy(ids[None].astype(np.int32))
    return "png", _png(ids.astype(np.uint8 if ids.max(initial=0) <= 255 else np.uint16))


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
