"""Downloads that were allocated and not finished, and files whose checksums are wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.cut_files import check_whole
from unveil.data.decode import Unreadable, decode
from unveil.data.inspection import inspect_source
from unveil.data.loader import Loader, TooManyBroken
from unveil.data.modality_config import BUILT_IN
from unveil.data.read_map import read_map
from unveil.data.sources import open_source
from unveil.data.transforms import CenterView

rng = np.random.default_rng(0)
NOISE = rng.integers(0, 256, (150, 201, 3), np.uint8)
SMOOTH = np.kron(rng.integers(0, 256, (20, 25, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "JPEG": ("JPEG", {}),
    "JPEG 2000": ("JPEG2000", {}),
    "GIF": ("GIF", {}),
}


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, FORMATS.get(kind, (kind,))[0], **(FORMATS.get(kind, ("", {}))[1] | options))
    return stream.getvalue()


def zeroed(data: bytes, share: float) -> bytes:
    keep = int(len(data) * share)
    return data[:keep] + bytes(len(data) - keep)


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize("picture", ["noise", "smooth"])
@pytest.mark.parametrize("kind", FORMATS)
def test_files_whose_rest_is_zeros_are_unreadable(kind: str, picture: str, share: float):
    data = encoded(NOISE if picture == "noise" else SMOOTH, kind)
    check_whole(data)
    with pytest.raises(Unreadable):
        decode(zeroed(data, share))


@pytest.mark.parametrize("kind", ["PNG", "WebP", "BMP", "TIFF", "JPEG"])
def test_cut_downloads_are_called_so(kind: str):
    with pytest.raises(Unreadable, match="zero bytes, as a download does that was cut off: fetch the file again"):
        decode(zeroed(encoded(NOISE, kind), 0.5))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", [0, 255])
def test_flat_and_black_pictures_are_whole(kind: str, value: int):
    half = np.full((150, 201, 3), value, np.uint8)
    check_whole(encoded(half, kind))
    half[:75] = NOISE[:75]
    disc = np.hypot(*np.mgrid[-75:75, -100:101]) < 60
    for pixels in (half, half[::-1], half * disc[..., None].astype(np.uint8)):
        data = encoded(np.ascontiguousarray(pixels), kind)
        check_whole(data)
        assert decode(data).shape == (3, 150, 201)


def test_a_large_flat_webp_that_ends_in_zeros_is_whole():
    pixels = np.zeros((1500, 2000, 3), np.uint8)
    for quality in (1, 80):
        check_whole(encoded(pixels, "WebP", quality=quality))
    pixels[:300] = np.arange(2000)[None, :, None] % 256
    check_whole(encoded(pixels, "WebP"))


def test_padding_behind_the_end_spoils_nothing():
    for kind in ("PNG", "WebP", "JPEG"):
        data = encoded(SMOOTH, kind)
        assert torch.equal(decode(data + bytes(5000)), decode(data)), kind


def test_wrong_checksums_of_png():
    data = encoded(NOISE)
    place = data.index(b"IDAT") + 4000
    wrong = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    with pytest.raises(Unreadable, match=r"the checksum of IDAT at byte \d+ is wrong"):
        decode(wrong)
    with pytest.raises(Unreadable, match="wrong"):
        read_map(wrong, BUILT_IN["depth"])
    with pytest.raises(Unreadable, match="IEND is missing"):
        decode(data[: data.index(b"IEND") - 4])
    text = data[:33] + b"\0\0\0\4tEXtabcd\0\0\0\0" + data[33:]  # of what is no pixel it may be
    check_whole(text)


def test_pieces_of_a_tiff_beyond_its_end():
    data = encoded(NOISE, "TIFF")
    with pytest.raises(Unreadable, match="its pixels end 10,000 bytes behind its end"):
        decode(data[:-10_000])


def test_inspect_names_cut_files_and_training_counts_them(tmp_path: Path):
    large = rng.integers(0, 256, (300, 200, 3), np.uint8)
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(large))
    (tmp_path / "6.png").write_bytes(zeroed(encoded(large), 0.5))
    (tmp_path / "7.bmp").write_bytes(zeroed(encoded(large, "BMP"), 0.5))
    source = open_source(tmp_path)
    facts = inspect_source(source, limit=1)  # none of the two is decoded
    assert list(facts.unreadable) == ["6.png", "7.bmp"]
    assert all("cut off" in reason for reason in facts.unreadable.values())
    loader = Loader(source, CenterView((16, 16)), 4, max_broken=0.05)
    with pytest.raises(TooManyBroken, match=r"6\.png: it ends in .* zero bytes"):
        list(loader.batches(0))
