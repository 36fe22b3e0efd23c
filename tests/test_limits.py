"""Headers that lie, and images too large: refused before a pixel is decoded."""

from __future__ import annotations

import importlib.util
import io
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from unveil.data import headers, limits, picture_arrays, strips
from unveil.data.decode import Unreadable, decode, read_header, to_channels
from unveil.data.headers import moments
from unveil.data.modality_config import BUILT_IN, RGB
from unveil.data.rasters import open_raster
from unveil.data.read_map import read_map
from unveil.data.tiff_files import first_page

rng = np.random.default_rng(0)
DEPTH = BUILT_IN["depth"]


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever decodes pixels fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(np, "load", refuse)
    if importlib.util.find_spec("tifffile"):
        monkeypatch.setattr("tifffile.imread", refuse)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def tiff(width: int, height: int, samples: int = 1, *, order: str = "<", big: bool = False, geo: bool = False) -> bytes:
    """One page whose only strip is missing; `geo` adds the tag that makes it a GeoTIFF."""
    word = "Q" if big else "I"
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, 64)]
    entries += [(34735, 3, 1, 1)] if geo else []
    mark = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head = mark + (struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8))
    rows = b""
    for tag, kind, count, value in entries:
        inside = struct.pack(order + ("H" if kind == 3 else "I"), value).ljust(struct.calcsize(f"={word}"), b"\0")
        rows += struct.pack(order + "HH" + word, tag, kind, count) + inside
    return head + struct.pack(order + ("Q" if big else "H"), len(entries)) + rows + bytes(8) + bytes(64)


def npz(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """An archive whose array declares this shape and holds 64 bytes."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", content.getvalue() + bytes(64))
    return archive.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_the_first_page_of_a_tiff_is_read(order: str, big: bool):
    page = first_page(io.BytesIO(tiff(70_000, 3, 49_153, order=order, big=big)))
    assert page is not None
    assert (page.width, page.height, page.samples, page.bits, page.compression) == (70_000, 3, 49_153, 8, 1)
    assert page.pieces == ((8, 64),)
    for length in range(60):
        first_page(io.BytesIO(tiff(7, 3, order=order, big=big)[:length]))  # and nothing is raised


@pytest.mark.parametrize("geo", [False, True])
@pytest.mark.usefixtures("no_pixels")
def test_a_tiff_of_49153_bands_is_refused(geo: bool, tmp_path):
    data = tiff(8, 8, 49_153, geo=geo)
    with pytest.raises(Unreadable, match="49,153 channels"):
        decode(data)
    with pytest.raises(Unreadable, match="49,153 channels"):
        read_header(data)
    if not geo or importlib.util.find_spec("rasterio"):
        with pytest.raises(Unreadable, match="49,153 channels"):
            read_map(data, DEPTH)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(Unreadable, match="49,153 channels"):
        open_raster(tmp_path / "a.tif", "a.tif", RGB)


LARGE: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: png_header(20_000, 20_000),
    "TIFF": lambda: tiff(20_000, 20_000),
    "TIFF of bands": lambda: tiff(10_000, 10_000, 100),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.usefixtures("no_pixels")
def test_large_images_are_refused_before_they_are_decoded(kind: str):
    with pytest.raises(Unreadable, match=r"bomb.*\? Where it is meant, cut it into tiles .* UNVEIL_MAX_PIXELS"):
        decode(LARGE[kind]())
    with pytest.raises(Unreadable, match="bomb"):
        read_header(LARGE[kind]())


@pytest.mark.usefixtures("no_pixels")
def test_many_large_pages_are_refused_before_one_is_decoded(monkeypatch: pytest.MonkeyPatch):
    pages = [Image.new("L", (64, 64)) for _ in range(8)]
    stream = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.undo()
        pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    monkeypatch.setattr(limits, "max_pixels", lambda: 8000)
    with pytest.raises(Unreadable, match="8 x 64 x 64 values of 1 bytes are too many"):
        decode(stream.getvalue())


@pytest.mark.parametrize("shape", [(40_000, 40_000), (1 << 40,), (3, 20_000, 20_000)])
def test_arrays_of_npz_that_declare_too_much_are_not_read(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("numbers were read"))
    with pytest.raises(Unreadable, match="too many to be read at once"):
        read_map(npz(shape), DEPTH)


def test_arrays_that_hold_less_than_they_declare_are_not_allocated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("numbers were read"))
    with pytest.raises(Unreadable, match="its header declares float32"):
        read_map(npz((10_000, 10_000)), DEPTH)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("numbers were read"))
    with zipfile.ZipFile(io.BytesIO(npz((3, 1000, 1000), "|u1"))) as archive:
        plain = archive.read("a.npy")
    for read in (decode, lambda data: read_map(data, DEPTH)):
        with pytest.raises(Unreadable, match="the file is truncated: its header declares uint8"):
            read(plain)


def test_the_limit_is_set_by_the_environment():
    """In a process of its own, with as little memory as torch needs, since what is refused is never allocated."""
    code = (
        "from unveil.data.decode import Unreadable, decode, read_header\n"
        "import sys\n"
        "data = sys.stdin.buffer.read()\n"
        "try: print(read_header(data).size)\n"
        "except Unreadable as error: print(error.reason)"
    )

    def run(pixels: str, data: bytes) -> str:
        return subprocess.run(
            [sys.executable, "-c", code],
            input=data,
            capture_output=True,
            check=True,
            env={"UNVEIL_MAX_PIXELS": pixels, "PYTHONPATH": ":".join(sys.path), "PATH": ""},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30,) * 2),
        ).stdout.decode()

    assert run("900000000", png_header(20_000, 20_000)).strip() == "(20000, 20000)"
    assert "more than 63: a decompression bomb" in run("63", png_header(8, 8))
    assert "UNVEIL_MAX_PIXELS=many is no whole number above 0" in run("many", png_header(8, 8))


def test_large_images_come_in_strips_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    for mode, shape in (("RGB", (37, 21, 3)), ("L", (37, 21)), ("RGBA", (37, 21, 4))):
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)
        monkeypatch.setattr(picture_arrays, "_STRIP", 50)
        assert np.array_equal(picture_arrays.array_of(image), np.array(image))
    pixels = torch.from_numpy(rng.integers(0, 256, (37, 21, 3), np.uint8)).permute(2, 0, 1)
    whole = moments(pixels)
    monkeypatch.setattr(headers, "_STRIP", 50)
    assert np.allclose(moments(pixels), whole, rtol=1e-12)
    assert np.allclose(moments(pixels.flatten(1)), whole, rtol=1e-12)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_large_files_are_measured_in_strips_with_the_same_numbers(mode: str, monkeypatch: pytest.MonkeyPatch):
    """A second array of their pixels is not made."""
    monkeypatch.setattr(strips, "LARGE", 100)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (37, 21, 3), np.uint8)).convert(mode).save(file, "PNG")
    data = file.getvalue()
    for channels in (3, 1):
        lines = strips.in_strips(data, "a.png", channels, 50)
        assert lines is not None
        parts = [*lines]
        assert len(parts) == 19  # of two lines
        assert torch.equal(torch.cat(parts, 1), to_channels(decode(data), channels))
    broken = strips.in_strips(data[:-30], "a.png", 3, 50)
    assert broken is not None
    with pytest.raises(Unreadable, match=r"a\.png: the file is truncated"):
        next(broken)
