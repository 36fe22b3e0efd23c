"""Files without checksums whose end is missing or zeros, packed DICOM, and rasters that are larger than an image."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.data import limits
from unveil.data.cut_files import check_whole
from unveil.data.decode import Unreadable, decode
from unveil.data.modality_config import BUILT_IN, RGB
from unveil.data.rasters import open_raster
from unveil.data.read_map import read_map

rng = np.random.default_rng(0)
PIXELS = rng.integers(1, 256, (64, 60, 3), np.uint8)


def saved(kind: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


FILES = {
    "BMP": lambda pixels: saved("BMP", pixels),
    "DIB": lambda pixels: saved("DIB", pixels),
    "PPM": lambda pixels: saved("PPM", pixels),
    "PGM": lambda pixels: saved("PPM", pixels[..., 0]),
    "TGA": lambda pixels: saved("TGA", pixels),
    "TGA, coded": lambda pixels: saved("TGA", pixels, compression="tga_rle"),
    "PCX": lambda pixels: saved("PCX", pixels),
    "SGI": lambda pixels: saved("SGI", pixels),
    "DDS": lambda pixels: saved("DDS", pixels),
    "DDS, blocks": lambda pixels: saved("DDS", pixels, pixel_format="DXT1"),
    "QOI": lambda pixels: saved("QOI", pixels),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_ends_in_zeros_is_named_and_a_black_one_is_read(kind: str):
    whole = FILES[kind](PIXELS)
    black = PIXELS.copy()
    black[17:] = 0
    for pixels in (PIXELS, black, np.zeros_like(PIXELS)):
        data = FILES[kind](pixels)
        for padded in (data, data + bytes(700)):
            check_whole(padded)
            assert decode(padded).shape[1:] == (64, 60)
    named = 0
    for at in (len(whole) // 2 + more for more in (13, 24, 35, 46)):  # near the ends of a row it may as well be black
        try:
            decode(whole[:at] + bytes(len(whole) - at))
        except Unreadable as error:
            named += "zero bytes, as a download does" in error.reason
    assert named >= 2


@pytest.mark.parametrize("negative", [False, True])
def test_a_bmp_is_as_long_as_it_says(negative: bool):
    data = bytearray(saved("BMP"))
    if negative:  # its rows go down
        data[22:26] = struct.pack("<i", -64)
    check_whole(bytes(data))
    with pytest.raises(ValueError, match="7 of its bytes are missing"):
        check_whole(bytes(data[:-7]))
    coded = bytes(data[:30]) + struct.pack("<I", 1) + bytes(data[34:])  # runs, whose size the header alone says
    check_whole(coded)
    with pytest.raises(ValueError, match="9 of its bytes are missing"):
        check_whole(coded[:-9])


def test_a_deflated_dicom_is_bounded_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.PixelData = np.arange(1, 65, dtype=np.uint16).tobytes()
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    scale = BUILT_IN["depth"]
    assert read_map(stream.getvalue(), scale).values.shape == (1, 8, 8)
    data = stream.getvalue()
    start = next(at for at in range(132, len(data)) if _unpacks(data[at:]))
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = data[:start] + packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS) + bytes(1 << 20))
    bomb += packer.flush()
    monkeypatch.setattr(limits, "max_pixels", lambda: 1 << 16)
    monkeypatch.setattr(pydicom, "dcmread", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(Unreadable, match="too many to be read at once"):
        read_map(bomb, scale)


def _unpacks(data: bytes) -> bool:
    try:
        return len(zlib.decompress(data, -zlib.MAX_WBITS)) > 100
    except zlib.error:
        return False


@pytest.mark.parametrize("reader", ["rasterio", "tifffile"])
def test_windows_of_a_raster_above_the_limit_are_read_from_small_parts(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip(reader)
    if reader == "tifffile":
        monkeypatch.setattr("unveil.data.rasters.find_spec", lambda name: name == "tifffile" or None)
    pixels = rng.integers(0, 256, (3, 128, 160), np.uint8)
    for name, parts in (("tiles", {"tiled": True, "blockxsize": 32, "blockysize": 32}), ("strip", {"blockysize": 128})):
        size = {"width": 160, "height": 128, "count": 3, "dtype": "uint8"}
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", compress="deflate", **size, **parts) as file:
            file.write(pixels)
    monkeypatch.setattr(limits, "max_pixels", lambda: 5000)
    raster = open_raster(tmp_path / "tiles.tif", "tiles", RGB)
    assert raster.size == (128, 160)
    assert np.array_equal(raster.read((40, 50, 30, 30)).values.numpy(), pixels[:, 40:70, 50:80])
    with pytest.raises(Unreadable, match=r"smallest part .* 3 x 128 x 160 values"):
        open_raster(tmp_path / "strip.tif", "strip", RGB)
