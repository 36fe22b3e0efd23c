"""Files that are not whole: checksums, sizes in headers, and long runs of zeros, as cut downloads end in."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Collection

from .tiff_files import first_page, is_tiff

_ZEROS = bytes(64)  # fewer at the end say nothing
_SHARE = 8  # one in so many bytes of coded pixels, for flat ones, too, may end in some zeros
_PALETTE = 768  # bytes at the end of a PCX, of which all may be zeros
_FEW = 8  # bytes at the end of a row that may be black by themselves
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # chunks that a picture cannot do without


def check_whole(data: bytes) -> None:
    """Raise ValueError for a file of which a part is missing or zeros, so far as its bytes tell without decoding.

    PNG: the checksums of its chunks, and its last chunk. WebP, TIFF, BMP: sizes. What is coded does not end in many
    zeros; pixels that are not, in BMP, TIFF, PPM, TGA, SGI and DDS, may: they are cut where zeros begin inside a row
    below one that goes on.
    """
    if data.startswith(_PNG):
        _check_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)
    elif is_tiff(data):
        _check_tiff(data)
    elif data[:2] == b"BM" and (missing := _bmp_size(data) - len(data)) > 0:
        raise ValueError(f"the file is truncated: {missing:,} of its bytes are missing")
    elif not data.endswith(_ZEROS):
        return
    elif data.startswith(_JPEG):
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise _cut(data)
    elif rows := _plain_rows(data):
        _check_rows(data, *rows)
    elif data[:4] == b"qoif":  # its end is seven zeros and a one
        if not data.rstrip(b"\0").endswith(bytes(7) + b"\1"):
            raise _cut(data)
    elif _is_run_coded(data):
        if _num_zeros(data) > max(_PALETTE, len(data) // _SHARE):
            raise _cut(data)
    elif data[4:8] in (b"ftyp", b"jP  ") and _num_zeros(data) > len(data) // _SHARE:
        raise _cut(data)


def may_be_cut(start: bytes, stop: bytes) -> bool:
    """Whether the ends of a PNG or JPEG leave open that it is cut: the mark of its end is not in the last bytes."""
    return (b"IEND" if start.startswith(_PNG) else b"\xff\xd9") not in stop


def _cut(data: bytes) -> ValueError:
    return ValueError(
        f"it ends in {_num_zeros(data):,} zero bytes, as a download does that was cut off: fetch the file again"
    )


def _num_zeros(data: bytes) -> int:
    return len(data) - len(data.rstrip(b"\0"))


def _check_png(data: bytes) -> None:
    """The chunks of a PNG (PNG 3, section 5.3): all are there up to IEND, and those of its pixels as they were."""
    place, whole = 8, memoryview(data)
    while True:
        length, kind = int.from_bytes(whole[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind == bytes(4) and data.endswith(_ZEROS):
            raise _cut(data)
        if end > len(data):
            missing = "IEND" if len(kind) < 4 else f"the end of {kind.decode('latin-1')!r}"
            raise ValueError(f"the file is truncated or damaged: {missing} is missing")
        if kind in _PIXELS and zlib.crc32(whole[place + 4 : end - 4]) != int.from_bytes(whole[end - 4 : end], "big"):
            if data.endswith(_ZEROS):
                raise _cut(data)
            raise ValueError(f"the file is damaged: the checksum of {kind.decode()} at byte {place:,} is wrong")
        if kind == b"IEND":
            return
        place = end


def _check_webp(data: bytes) -> None:
    """The size of a WebP, and that the pixels of its first frame do not end in zeros (RFC 9649, section 2)."""
    missing = 8 + int.from_bytes(data[4:8], "little") - len(data)
    if missing > 1:  # the byte that makes it even may be left out
        raise ValueError(f"the file is truncated: {missing:,} of its bytes are missing")
    place = 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind == bytes(4) and data.endswith(_ZEROS):
            raise _cut(data)
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            pixels = data[place + 8 : place + 8 + size]
            sides = [int.from_bytes(pixels[at : at + 2], "little") & 0x3FFF for at in (6, 8)]
            blocks = sides[0] * sides[1] // 256 if kind == b"VP8 " else 0  # flat ones take less than a bit
            if pixels.endswith(_ZEROS) and _num_zeros(pixels) > max(len(pixels) // _SHARE, blocks // 8):
                raise _cut(pixels)
            return
        place += 8 + size + size % 2


def _check_tiff(data: bytes) -> None:
    """The strips or tiles of the first page: all lie in the file, and no coded one in the zeros that it ends in."""
    page = first_page(io.BytesIO(data))
    if page is None:
        return
    last = max((start + size for start, size in page.pieces if size), default=0)
    if last > len(data) + len(_ZEROS):
        raise ValueError(f"the file is truncated: its pixels end {last - len(data):,} bytes behind its end")
    if not data.endswith(_ZEROS):
        return
    if page.compression == 1:
        if page.pieces and not page.is_tiled:
            _check_rows(data, page.pieces[0][0], -(-page.width * page.samples * page.bits // 8), page.height)
        return
    zeros = len(data) - _num_zeros(data)
    for start, size in page.pieces:
        inside = start + size - max(zeros, start)
        if size > len(_ZEROS) and inside > max(len(_ZEROS), size // _SHARE):
            raise _cut(data)


def _bmp_size(data: bytes) -> int:
    """The bytes that a BMP needs: those of its pixels, or, where they are coded, those that its header declares."""
    rows = _plain_rows(data)
    return int.from_bytes(data[2:6], "little") if rows is None else rows[0] + rows[1] * rows[2]


def _plain_rows(data: bytes) -> tuple[int, int, int] | None:
    """Where the pixels of a file begin that are not coded, the bytes of a row, and the rows; None for another file."""

    def number(start: int, size: int = 2) -> int:
        return int.from_bytes(data[start : start + size], "little")

    if data[:2] == b"BM" or data[:4] == b"\x28\0\0\0":
        head = 14 if data[:2] == b"BM" else 0
        if number(head, 4) < 40:  # of OS/2
            return None
        colours = (number(head + 32, 4) or 1 << number(head + 14)) if number(head + 14) <= 8 else 0
        start = number(10, 4) if head else 40 + 4 * colours
        is_plain = number(head + 16, 4) in (0, 3)
        lines = abs(int.from_bytes(data[head + 8 : head + 12], "little", signed=True))
        return (start, (number(head + 4, 4) * number(head + 14) + 31) // 32 * 4, lines) if is_plain else None
    if match := re.match(rb"P([56])(?:\s+(?:#[^\n]*\n\s*)*)(\d+)\s+(\d+)\s+(\d+)\s", data[:4096]):
        size = (3 if match[1] == b"6" else 1) * (2 if int(match[4]) > 255 else 1)
        return match.end(), int(match[2]) * size, int(match[3])
    if data[:3] == b"\x01\xda\0":  # SGI, which is of big numbers
        width, height, planes = (int.from_bytes(data[at : at + 2], "big") for at in (6, 8, 10))
        return 512, width * data[3], height * planes
    if data[:4] == b"DDS ":
        blocks = {b"DXT1": 8, b"BC4U": 8, b"ATI1": 8}.get(data[84:88], 16)
        if number(80, 4) & 4:
            return 128, (number(16, 4) + 3) // 4 * blocks, (number(12, 4) + 3) // 4
        return 128, number(16, 4) * number(88, 4) // 8, number(12, 4)
    if _is_tga(data, (1, 2, 3)):
        palette = number(5) * ((data[7] + 7) // 8) if data[1] else 0
        return 18 + data[0] + palette, number(12) * ((data[16] + 7) // 8), number(14)
    return None


def _is_run_coded(data: bytes) -> bool:
    """Whether a file is a PCX, an SGI or a TGA whose pixels are runs: these hold no zeros one after another."""
    return data[:3] == b"\x01\xda\1" or (data[:1] == b"\n" and data[2:3] == b"\1") or _is_tga(data, (9, 10, 11))


def _is_tga(data: bytes, kinds: Collection[int]) -> bool:
    """Whether this is a TGA of one of these kinds, so far as one can be told: it begins with no mark."""
    return len(data) > 18 and data[1] == (data[2] in (1, 9)) and data[2] in kinds and data[16] in (8, 15, 16, 24, 32)


def _check_rows(data: bytes, start: int, stride: int, count: int) -> None:
    """Of pixels that are not coded: black ones begin with a row, or end a row as they end the one before it."""
    zeros = len(data) - _num_zeros(data)
    if stride < 1 or zeros - stride < start or len(data) - zeros < stride or zeros >= start + stride * count:
        return
    column = (zeros - start) % stride
    before = data[zeros - stride : zeros - column] if column else b""
    if len(before) >= _FEW and before.count(0) * 2 < len(before):
        raise _cut(data)
