"""Encoded bytes to pixels: simplejpeg for plain JPEG, Pillow for the rest, always by content, never by extension."""

from __future__ import annotations

import io
import logging
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import simplejpeg
import torch
from jaxtyping import Bool, Shaped
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from ..runs.console import quoted
from .cut_files import check_whole
from .extras import optional
from .limits import MAX_CHANNELS, check_size, max_pixels, open_image, other_way
from .picture_arrays import NPY, array_of, in_range, in_unit, picture_array
from .tiff_files import ChannelTiff, check_tiff, gdal_driver, is_tiff

T = TypeVar("T")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jfif", ".jpe", ".jif", ".avif", ".apng"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga", ".dib", ".pcx", ".sgi"),
    *(".ras", ".dds", ".qoi", ".ico", ".psd"),
)
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # its line for each image of many bands
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow weigh red, green and blue

_LARGE = 1 << 26  # pixels, beyond which an image is decoded by one thread at a time, for it takes gigabytes
alone = Lock()

# Tags of EXIF and TIFF.
_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION, _SAMPLES_PER_PIXEL = 0x0100, 0x0101, 0x0102, 0x0112, 0x0115
_PLANAR, _PHOTOMETRIC = 0x011C, 0x0106
_GREY_ALPHA = 4  # the colour type in the header chunk of a PNG, which Pillow opens as RGBA where it has 16 bits
_TRANSPOSED = (5, 6, 7, 8)  # orientations whose rows are columns
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_FLOAT = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


class Unreadable(ValueError):  # noqa: N818, the field says that an image is unreadable
    """An image that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{quoted(self.name)}: {quoted(self.reason)}"


class NoneReadable(ValueError):  # noqa: N818
    """Not one of some images can be decoded."""


@dataclass(frozen=True)
class Header:
    """What the header of an image holds; `size` is (height, width) as it will be delivered."""

    format: str
    mode: str
    size: tuple[int, int]
    channels: int
    bits: int
    has_alpha: bool


def decode(data: bytes, name: str = "image", reduction: int = 1) -> Shaped[Tensor, "C H W"]:
    """The pixels of an encoded image: uint8 in 0..255, or float32 in [0, 1] for 16-bit grey and float files.

    The sides of a plain JPEG are divided by `reduction`, 1, 2, 4 or 8, and rounded up; those of any other file are not.

    Grey has 1 channel, everything of colour 3 (palettes, CMYK; alpha is dropped; colour of 16 bits is float32), a TIFF
    of several equal grey pages one per page, any other TIFF as many as `tifffile` finds. The first frame of an
    animation counts, and EXIF orientation is applied. Pixels that are NaN, infinite or outside [0, 1] are refused: no
    scale is guessed. Raises `Unreadable`.
    """
    return reading(name, _decode if reduction == 1 else partial(_decode, reduction=reduction), data)


def read_header(data: bytes, name: str = "image") -> Header:
    """What the header says, without decoding the pixels. Raises `Unreadable`."""
    return reading(name, _read_header, data)


def pixels_of(image: Image.Image, name: str = "image") -> Shaped[Tensor, "C H W"]:
    """The pixels of an opened Pillow image, as `decode` gives those of its file. Raises `Unreadable`."""
    try:
        return _pixels(image, 0)
    except Exception as error:  # Pillow decodes a file that it opened only now, and may raise anything
        raise Unreadable(name, str(error) or type(error).__name__) from error


def to_channels(image: Shaped[Tensor, "C H W"], channels: int, name: str = "image") -> Shaped[Tensor, "{channels} H W"]:
    """The image with this many channels: grey is repeated to 3, colour weighed to 1 (luma); else `Unreadable`."""
    if len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.repeat(3, 1, 1)
    if len(image) == 3 and channels == 1:
        luma: Tensor = torch.tensordot(torch.tensor(LUMA), image.float(), dims=1)[None]
        return luma.round().to(torch.uint8) if image.dtype == torch.uint8 else luma
    raise Unreadable(name, f"has {len(image)} channel{'s' * (len(image) > 1)}; {channels} are needed")


def reading(name: str, read: Callable[[bytes], T], data: bytes) -> T:
    """What a reader makes of the bytes of a file; any of its errors becomes `Unreadable`."""
    if not data:
        raise Unreadable(name, "the file is empty (0 bytes)")
    try:
        return read(data)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        is_heif = data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
        what = "HEIC, as phones write it: convert it to JPEG or PNG" if is_heif else f"it starts with {data[:8]!r}"
        raise Unreadable(name, f"not an image in a format that can be read ({what})") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(name, f"{str(error).removesuffix('.')}? {other_way()}") from error
    except Exception as error:  # decoders of foreign bytes may raise anything
        raise Unreadable(name, str(error) or type(error).__name__) from error


def _decode(data: bytes, reduction: int = 1) -> Tensor:
    check_whole(data)
    if data[:3] == b"\xff\xd8\xff" and (pixels := _decode_jpeg(data, reduction)) is not None:
        return pixels
    if data[:6] == NPY:
        return torch.from_numpy(in_range(picture_array(data)))
    image = _open(data)
    with alone if math.prod(image.size) > _LARGE else nullcontext():
        return _decode_opened(image, data)


def _decode_opened(image: Image.Image | ChannelTiff, data: bytes) -> Tensor:
    if isinstance(image, ChannelTiff):
        return torch.from_numpy(image.pixels())
    if (deep := deep_colour(image, data)) is not None:
        values, full = deep
        return torch.from_numpy((values / full).astype(np.float32))
    if image.format == "TIFF" and image.mode in _GREY:
        pages = _num_channels(image, data)
        check_size(image.height, image.width, pages, max(1, _num_bits(image, data) // 8))
        first = _pixels(image, 0)
        whole = first if pages == 1 else first.new_empty(pages, *first.shape[1:])
        for page in range(pages if pages > 1 else 0):
            whole[page] = _pixels(image, page)[0]
        return whole
    return _pixels(image, 0)


def _decode_jpeg(data: bytes, reduction: int) -> Tensor | None:
    """The pixels of a grey or YCbCr JPEG, each side divided by 1, 2, 4 or 8; None where Pillow should look at it."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("Gray", "YCbCr") or height * width > max_pixels():
            return None
        least = (-(-height // reduction), -(-width // reduction)) if reduction > 1 else (0, 0)
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if colorspace == "Gray" else "RGB", False, False, *least)
    except ValueError as error:
        # Strict decoding also refuses harmless oddities (stray bytes between markers), which Pillow reads well.
        # Missing data it would fill with grey.
        if "premature end" in str(error).lower():
            raise ValueError(f"the file is truncated or damaged ({error})") from error
        return None
    return _turned(torch.from_numpy(pixels).permute(2, 0, 1), _jpeg_orientation(data))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a plain JPEG as it will be delivered; None for anything else, also for what is no image."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("Gray", "YCbCr") or height * width > max_pixels():
        return None
    return (width, height) if _jpeg_orientation(data) in _TRANSPOSED else (height, width)


def _jpeg_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1..8; its segments are walked up to the scan (ITU-T T.81, annex B)."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    else:
        if data[at : at + 2] == b"\xff\xda" or data.find(b"Exif\0\0", 0, 1 << 18) < 0:
            return 1
    with open_image(io.BytesIO(data)) as header:
        return _orientation(header)


def _open(data: bytes) -> Image.Image | ChannelTiff:
    """The image as Pillow opens it or, for a TIFF with more channels than Pillow knows, as `tifffile` does."""
    try:
        image = open_image(io.BytesIO(data))
    except UnidentifiedImageError:
        if is_tiff(data):
            check_tiff(io.BytesIO(data))
            return ChannelTiff(data)
        raise
    check_size(image.height, image.width)
    if isinstance(image, TiffImageFile) and image.mode != "P":
        samples = image.tag_v2.get(_SAMPLES_PER_PIXEL, 1)
        if samples > len(image.getbands()):  # Pillow would drop the rest without a word
            check_tiff(io.BytesIO(data))
            return ChannelTiff(data)
    return image


def deep_colour(image: Image.Image, data: bytes) -> tuple[Shaped[np.ndarray, "C H W"], int] | None:
    """Pixels of 9 to 16 bits a channel that Pillow cuts to 8: as stored, upright, without alpha; None for others.

    The number beside them is that of full intensity.
    """
    bits = _num_bits(image, data)
    if not isinstance(image, ImageFile) or not image.mode.startswith("RGB") or not 8 < bits <= 16:
        return None
    codec, _, start, _ = image.tile[0]
    values: np.ndarray
    if codec.startswith("ppm"):
        shape, is_text = (image.height, image.width, 3), codec == "ppm_plain"
        values = np.array(data[start:].split()) if is_text else np.frombuffer(data, ">u2", math.prod(shape), start)
        values = values.astype(np.uint16).reshape(shape)
        return values.transpose(2, 0, 1), _decoder_arguments(image.tile[0])[-1]
    is_planar = isinstance(image, TiffImageFile) and image.tag_v2.get(_PLANAR) == 2
    if codec == "jpeg2k" or (is_planar and (codec == "libtiff" or image.mode != "RGB")):
        rasterio = optional("rasterio", f"{bits} bits a channel are read with rasterio: pip install 'unveil[geotiff]'")
        warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
        with rasterio.MemoryFile(data) as memory, memory.open(driver=gdal_driver(data)) as file:
            values = file.read()
    else:
        image, values = _sixteen_bits(image, data)
    values = values if _has_fourth_band(image) else values[:3]
    return oriented(torch.from_numpy(values), image).numpy(), 2**bits - 1


def _sixteen_bits(image: ImageFile, data: bytes) -> tuple[ImageFile, Shaped[np.ndarray, "C H W"]]:
    """The image loaded, and its numbers: Pillow decodes them twice, the first byte of each and then the second."""
    codec, name = image.tile[0].codec_name, _decoder_arguments(image.tile[0])[0].partition(";")[0]
    is_little = isinstance(image, TiffImageFile) and image.tag_v2.prefix == b"II"
    is_little = sys.byteorder == "little" if codec == "libtiff" else is_little
    bytes_of = []
    for byte in "BL":  # what the raw modes that end in ;16B and ;16L keep, whichever the order in the file is
        image = open_image(io.BytesIO(data))
        image.tile = [tile._replace(args=_keeping(byte, *_decoder_arguments(tile))) for tile in image.tile]
        image.load()
        bytes_of.append(np.array(image).astype(np.uint16).transpose(2, 0, 1))
    first, second = bytes_of
    if name == "LA":
        first, second = first[:1], first[1:2]
    values = second << 8 | first if is_little else first << 8 | second
    if name == "RGBa":
        values = (values * (65535 / values[3:].clip(1))).clip(0, 65535).astype(np.uint16)
    return image, values


def _decoder_arguments(tile: Any) -> tuple[Any, ...]:
    """What the decoder of a part of an image is given, of most formats the raw mode first."""
    return (tile.args,) if isinstance(tile.args, str) else tile.args


def _keeping(byte: str, raw_mode: str, *others: Any) -> tuple[Any, ...]:
    """Decoder arguments that keep this byte of two; of grey and alpha all four, of colour times alpha the product."""
    name = raw_mode.partition(";")[0]
    return ("RGBA" if name == "LA" else f"{'RGBA' if name == 'RGBa' else name};16{byte}", *others)


def _pixels(image: Image.Image, page: int) -> Tensor:
    if page:
        image.seek(page)
    image.load()
    original = image
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("LA", "La"):
        image = image.getchannel("L")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA").convert("RGB")
    elif image.mode not in _GREY and image.mode != "RGB" and not _has_fourth_band(image):
        image = image.convert("RGB")
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its 32-bit or signed integers have no known range; save it as 16 bit or as float in [0, 1]")
    array = array_of(image)
    if image.mode in _FLOAT:
        array = in_unit(array) if image.mode == "F" else (array / 65535.0).astype(np.float32)
        if isinstance(original, TiffImageFile) and image.mode != "F" and not original.tag_v2.get(_PHOTOMETRIC, 1):
            array = 1 - array  # 0 is white; of 8 bits Pillow turns it itself
    array = array[:, :, None] if array.ndim == 2 else array
    return oriented(torch.from_numpy(array).permute(2, 0, 1), original)


def oriented(pixels: Shaped[Tensor, "C H W"], image: Image.Image) -> Shaped[Tensor, "C h w"]:
    """The pixels of an image turned by its EXIF orientation 1..8 (TIFF 6.0, section 8, tag Orientation)."""
    return _turned(pixels, _orientation(image))


def opaque(data: bytes) -> Bool[Tensor, "1 H W"]:
    """Where the alpha of an encoded image is above 0, upright."""
    with open_image(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):  # grey of 16 bits, with one number that is transparent
            alpha = np.array(image) != image.info.get("transparency")
        else:
            alpha = np.array(image.convert("LA" if image.mode == "La" else "RGBA").getchannel("A")) > 0
        return oriented(torch.from_numpy(alpha)[None], image)


def _turned(pixels: Shaped[Tensor, "C H W"], orientation: int) -> Shaped[Tensor, "C h w"]:
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 2)
    dims = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return pixels.flip(dims) if dims else pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 where the EXIF block is absent or damaged, for that spoils no pixel."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # for damaged EXIF Pillow raises errors of many kinds, struct.error and SyntaxError among them
        return 1


def _read_header(data: bytes) -> Header:
    if data[:6] == NPY:
        array = picture_array(data)
        kind, bits = f"{len(array)} x {array.dtype}", 8 * array.itemsize
        return Header("npy", kind, array.shape[1:], len(array), bits, has_alpha=False)
    image = _open(data)
    if isinstance(image, ChannelTiff):
        mode, bits = f"{image.channels} x {image.dtype}", 8 * image.dtype.itemsize
        return Header("TIFF", mode, image.size, image.channels, bits, has_alpha=False)
    width, height = image.size
    if isinstance(image, TiffImageFile):  # recent versions of Pillow have turned its size already
        width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    size = (width, height) if _orientation(image) in _TRANSPOSED else (height, width)
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    return Header(str(image.format), image.mode, size, _num_channels(image, data), _num_bits(image, data), has_alpha)


def _num_bits(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]  # of the header chunk, which comes first
    if image.format == "JPEG2000":  # of the first component (ISO/IEC 15444-1, A.5.1)
        return (data[data.index(b"\xff\x4f\xff\x51") + 42] & 0x7F) + 1
    if image.format == "PPM" and isinstance(image, ImageFile) and image.tile[0].codec_name.startswith("ppm"):
        return int(_decoder_arguments(image.tile[0])[-1]).bit_length()  # of the highest number
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0])
    return {"1": 1, "I": 16, "F": 32}.get(image.mode.partition(";")[0], 8)


def _has_fourth_band(image: Image.Image) -> bool:
    """Whether this is a TIFF of colour and one band more that is no alpha, such as near infrared."""
    return image.mode == "RGBX" and image.format == "TIFF"


def _num_channels(image: Image.Image, data: bytes) -> int:
    """Grey 1, colour 3, and a TIFF of several grey pages of one size as many as pages."""
    is_grey = image.mode in _GREY or (image.format == "PNG" and data[25] == _GREY_ALPHA)
    if not is_grey:
        return 4 if _has_fourth_band(image) else 3
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    kinds = set()
    for page in range(min(pages, MAX_CHANNELS + 1)):
        image.seek(page)
        kinds.add((image.mode, image.size))
    image.seek(0)
    return pages if len(kinds) == 1 else 1  # pages that differ are previews or a pyramid
