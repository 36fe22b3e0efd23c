"""Colour of 16 bits a channel keeps its bits, as a picture and as a declared map, without an optional reader."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data import decode as decoding
from unveil.data.decode import Unreadable, decode, read_header
from unveil.data.modality_config import read_toml
from unveil.data.read_map import read_map

VALUES = np.random.default_rng(0).integers(0, 1024, (24, 16, 4)).astype(np.uint16)  # H W C, as a microscope stores them
COLOUR = VALUES[..., :3]


def png(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits; each row is stored as its difference to the row above."""
    height, width, _ = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    raw = b"".join(b"\2" + row.tobytes() for row in filtered)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    values: np.ndarray, order: str = "<", orientation: int = 1, *, planar: bool = False, photometric: int = 2
) -> bytes:
    """A TIFF of 16-bit RGB without compression, its planes one after another where it is planar."""
    height, width, channels = values.shape
    data = (values.transpose(2, 0, 1) if planar else values).astype(f"{order}u2").tobytes()
    strips = channels if planar else 1
    end = 8 + 2 + 12 * 11 + 4  # of the directory; lists follow it
    offsets = [end + 2 * channels + 8 * strips + k * len(data) // strips for k in range(strips)]
    lists = {258: ("H", [16] * channels), 273: ("I", offsets), 279: ("I", [len(data) // strips] * strips)}
    tags = {
        256: width,
        257: height,
        258: 0,
        259: 1,
        262: photometric,
        273: 0,
        274: orientation,
        277: channels,
        278: height,
    }
    tags |= {279: 0, 284: 2 if planar else 1}
    directory, more = struct.pack(f"{order}H", len(tags)), b""
    for tag, value in tags.items():
        kind, several = lists.get(tag, ("H", [value]))
        packed = struct.pack(f"{order}{len(several)}{kind}", *several)
        entry = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", end + len(more))
        more += packed if len(packed) > 4 else b""
        directory += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(several)) + entry
    more = more.ljust(2 * channels + 8 * strips, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}I", 8) + directory + bytes(4) + more + data


PPM = b"P6\n16 24\n65535\n" + COLOUR.astype(">u2").tobytes()
PPM_TEXT = b"P3\n16 24\n65535\n" + " ".join(map(str, COLOUR.flatten().tolist())).encode()
FILES = {
    "png": png(COLOUR, 2),
    "png with alpha": png(VALUES, 6),
    "tiff": tiff(COLOUR),
    "tiff, high byte first": tiff(COLOUR, ">"),
    "tiff of planes": tiff(COLOUR, planar=True),
    "ppm": PPM,
    "ppm in words": PPM_TEXT,
}


@pytest.fixture(autouse=True)
def _without_rasterio(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: str, needed: str) -> None:
        raise ValueError(needed)

    monkeypatch.setattr(decoding, "optional", refuse)


@pytest.mark.parametrize("name", FILES)
def test_a_picture_keeps_its_levels(name: str):
    image = decode(FILES[name])
    np.testing.assert_allclose(image.numpy(), COLOUR.transpose(2, 0, 1) / 65535, rtol=1e-6)
    assert read_header(FILES[name]).bits == 16
    assert image.unique().numel() == len(np.unique(COLOUR))


@pytest.mark.parametrize("name", FILES)
def test_a_declared_map_is_in_its_unit(tmp_path: Path, name: str):
    file = tmp_path / "rgb.toml"
    file.write_text("[rgb]\nchannels = 3\nscale = 0.0001\n")
    (declared,) = read_toml(file)
    read = read_map(FILES[name], declared)
    np.testing.assert_allclose(read.values.numpy(), COLOUR.transpose(2, 0, 1) * 1e-4, rtol=1e-6)
    assert read.stored.startswith("16-bit")


def test_grey_with_alpha_is_one_channel_of_16_bits():
    data = png(VALUES[..., :2], 4)
    np.testing.assert_allclose(decode(data)[0].numpy(), VALUES[..., 0] / 65535, rtol=1e-6)
    header = read_header(data)
    assert (header.channels, header.bits, header.has_alpha) == (1, 16, True)


def test_where_0_is_white_it_is_turned_as_8_bits_are():
    grey = VALUES[..., :1]
    data = tiff(grey, photometric=0)
    np.testing.assert_allclose(decode(data)[0].numpy(), 1 - grey[..., 0] / 65535, rtol=1e-6)
    np.testing.assert_allclose(decode(tiff(grey, photometric=1))[0].numpy(), grey[..., 0] / 65535, rtol=1e-6)


def test_numbers_below_65535_that_are_full_intensity_are_scaled_by_it():
    data = b"P6\n16 24\n1023\n" + COLOUR.astype(">u2").tobytes()
    np.testing.assert_allclose(decode(data).numpy(), COLOUR.transpose(2, 0, 1) / 1023, rtol=1e-6)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_it_is_turned_as_8_bits_are(orientation: int):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray((COLOUR >> 2).astype(np.uint8)).save(buffer, "TIFF", exif=exif)
    deep = decode(tiff(COLOUR, orientation=orientation))
    assert torch.equal((deep * 65535).round().int() >> 2, decode(buffer.getvalue()).int())
    assert read_header(tiff(COLOUR, orientation=orientation)).size == tuple(deep.shape[1:])


def test_deep_jpeg_2000_says_what_reads_it():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG2000")
    data = bytearray(buffer.getvalue())
    decode(bytes(data))  # 8 bits, which Pillow reads
    start = data.index(b"\xff\x4f\xff\x51")
    for component in range(3):
        data[start + 42 + 3 * component] = 15
    with pytest.raises(Unreadable, match=r"16 bits a channel are read with rasterio: pip install 'unveil\[geotiff\]'"):
        decode(bytes(data))
