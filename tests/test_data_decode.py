"""Every format and oddity, written here with Pillow and read back."""

from __future__ import annotations

import importlib.util
import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data import decode as decode_module
from unveil.data.decode import Unreadable, decode, read_header, to_channels

rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = rng.integers(0, 256, (6, 9), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def planes(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def smooth(mode: str = "RGB") -> Image.Image:
    ramp = Image.linear_gradient("L").resize((48, 40))
    bands = (ramp, ramp.rotate(180), ramp.transpose(Image.Transpose.TRANSVERSE).resize((48, 40)))
    return Image.merge("RGB", bands).convert(mode)


LOSSLESS = [(kind, array) for kind in ("PNG", "TIFF", "BMP") for array in (COLOUR, GREY)] + [("WEBP", COLOUR)]


@pytest.mark.parametrize(("kind", "array"), LOSSLESS)
def test_lossless_formats_come_back_as_they_were(kind, array):
    image = decode(encoded(array, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert image.dtype == torch.uint8
    assert torch.equal(image, planes(array))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_agrees_with_pillow(mode, progressive):
    data = encoded(smooth(mode), "JPEG", quality=90, progressive=progressive)
    image = decode(data)
    assert len(image) == (3 if mode == "RGB" else 1)
    assert (image.int() - planes(np.array(Image.open(io.BytesIO(data)))).int()).abs().max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    stored = smooth()
    upright = decode(encoded(stored, kind, exif=exif, **lossless))
    # What each orientation does to the stored rows and columns, as the EXIF standard words it.
    rows, columns = np.array(stored), np.array(stored).transpose(1, 0, 2)
    expected = {
        1: rows, 2: rows[:, ::-1], 3: rows[::-1, ::-1], 4: rows[::-1],
        5: columns, 6: columns[:, ::-1], 7: columns[::-1, ::-1], 8: columns[::-1],
    }[orientation]  # fmt: skip
    assert (upright.int() - planes(np.ascontiguousarray(expected)).int()).abs().max() <= (8 if kind == "JPEG" else 0)
    assert read_header(encoded(stored, kind, exif=exif)).size == tuple(upright.shape[1:])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_spoils_no_image():
    data = encoded(smooth(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert decode(data).shape == (3, 40, 48)


def test_16_bit_grey_keeps_its_bits():
    deep = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    for data in (encoded(deep, "PNG"), encoded(deep, "TIFF"), encoded(Image.fromarray(deep.astype(">u2")), "TIFF")):
        image = decode(data)
        assert image.dtype == torch.float32
        assert torch.equal((image * 65535).round().int(), torch.from_numpy(deep.astype(np.int32))[None])
        assert read_header(data).bits == 16


def test_float_tiff_passes_in_unit_range_only():
    good = rng.random((5, 7), dtype=np.float32)
    assert torch.equal(decode(encoded(good, "TIFF")), planes(good))
    for bad, reason in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (3.5, "scale them")):
        wrong = good.copy()
        wrong[2, 3] = bad
        with pytest.raises(Unreadable, match=reason):
            decode(encoded(wrong, "TIFF"))


def test_32_bit_integers_are_refused():
    with pytest.raises(Unreadable, match="no known range"):
        decode(encoded(np.full((4, 4), 70_000, np.int32), "TIFF"))


def test_cmyk_and_palette_and_bilevel_and_alpha():
    red = Image.new("RGB", (8, 8), (250, 5, 5))
    cmyk = decode(encoded(red.convert("CMYK"), "JPEG", quality=95))
    assert (cmyk.float().mean((1, 2)) - torch.tensor([250.0, 5, 5])).abs().max() < 6
    assert torch.equal(decode(encoded(red.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")), planes(np.array(red)))
    see_through = Image.fromarray(np.dstack([COLOUR, np.full((6, 9), 128, np.uint8)]))
    assert torch.equal(decode(encoded(see_through, "PNG")), planes(COLOUR))
    assert read_header(encoded(see_through, "PNG")).has_alpha
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(encoded(palette, "PNG", transparency=0)).shape == (3, 8, 8)
    grey_alpha = Image.fromarray(np.dstack([GREY, GREY]), "LA")
    assert torch.equal(decode(encoded(grey_alpha, "PNG")), planes(GREY))
    bits = Image.fromarray(GREY > 127)
    assert torch.equal(decode(encoded(bits, "PNG")), planes(np.where(GREY > 127, 255, 0).astype(np.uint8)))


def test_multi_page_grey_tiff_is_one_image_of_many_channels():
    pages = [Image.fromarray(rng.integers(0, 256, (6, 9), dtype=np.uint8)) for _ in range(5)]
    image = decode(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert torch.equal(image, torch.cat([planes(np.array(page)) for page in pages]))
    preview = encoded(pages[0], "TIFF", save_all=True, append_images=[pages[1].resize((3, 2))])
    assert torch.equal(decode(preview), planes(np.array(pages[0])))  # a page of another size is no channel


def test_many_channel_tiff_is_read_whole_or_says_how():
    data = _five_band_tiff()
    if importlib.util.find_spec("tifffile") is None:
        with pytest.raises(Unreadable, match="pip install tifffile"):
            decode(data)
    else:
        assert torch.equal(decode(data)[:, 0, 0], torch.arange(5, dtype=torch.uint8))
        assert read_header(data).channels == 5


def _five_band_tiff() -> bytes:
    """A 2 x 2 TIFF whose pixels are the bytes 0 1 2 3 4, written field by field."""
    pixels = bytes(range(5)) * 4
    entries = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 5, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0)]
    entries += [(277, 3, 1, 5), (278, 4, 1, 2), (279, 4, 1, len(pixels)), (338, 3, 4, 0)]
    end = 8 + 2 + 12 * len(entries) + 4
    places = {258: end, 338: end + 10, 273: end + 18}
    rows = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little")
        + places.get(tag, value).to_bytes(4, "little")
        for tag, kind, count, value in entries
    )  # fmt: skip
    head = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    return head + rows + bytes(4) + (8).to_bytes(2, "little") * 5 + bytes(8) + pixels


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    image = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50))
    assert image.shape == (3, 8, 8)
    assert image[0].min() > 240
    assert image[1:].max() < 15


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_unreadable(kind, share):
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    decode(data)
    with pytest.raises(Unreadable, match="cut"):
        decode(data[: int(share * len(data))], "cut")


def test_jpeg_that_ends_too_early_but_properly_is_unreadable():
    data = encoded(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    with pytest.raises(Unreadable, match="truncated or damaged"):
        decode(data[: len(data) // 2] + b"\xff\xd9")


def test_harmless_stray_bytes_in_a_jpeg_are_read():
    data = encoded(smooth(), "JPEG")
    scan = data.index(b"\xff\xda")
    stray = data[:scan] + b"\x00\x01\x02" + data[scan:]
    assert torch.equal(decode(stray), planes(np.array(Image.open(io.BytesIO(data)))))


def test_empty_and_foreign_bytes_are_unreadable():
    with pytest.raises(Unreadable, match="empty"):
        decode(b"")
    with pytest.raises(Unreadable, match="not an image"):
        decode(b"<html>not found</html>")
    with pytest.raises(Unreadable) as caught:
        decode(b"", "a.png")
    assert (caught.value.name, caught.value.reason) == ("a.png", "the file is empty (0 bytes)")
    assert str(caught.value) == "a.png: the file is empty (0 bytes)"


def test_decompression_bombs_are_unreadable():
    bomb = bytearray(encoded(GREY, "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    crc = zlib.crc32(bomb[12:29])
    bomb[29:33] = crc.to_bytes(4, "big")
    with pytest.raises(Unreadable, match="bomb"):
        decode(bytes(bomb))
    jpeg = bytearray(encoded(smooth(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(Unreadable, match="bomb"):
        decode(bytes(jpeg))


def test_to_channels():
    grey, colour = planes(GREY), planes(COLOUR)
    assert torch.equal(to_channels(grey, 3), grey.expand(3, -1, -1))
    luma = to_channels(colour, 1)
    assert (luma.int() - planes(np.array(Image.fromarray(COLOUR).convert("L"))).int()).abs().max() <= 1
    assert to_channels(colour.float() / 255, 1).dtype == torch.float32
    assert to_channels(colour, 3) is colour
    with pytest.raises(Unreadable, match="has 3 channels; 5 are needed"):
        to_channels(colour, 5)


def test_the_plain_jpeg_takes_the_fast_way(monkeypatch):
    monkeypatch.setattr(decode_module.Image, "open", lambda *_: pytest.fail("a plain JPEG went through Pillow"))
    assert decode(encoded(smooth(), "JPEG")).shape == (3, 40, 48)
