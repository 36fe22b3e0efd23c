"""Letters of names in pictures, in any script: a bundled font, then those of the machine, else code points."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BUNDLED = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic, Hebrew, Arabic, and signs
FOLDERS = (  # in which systems and users keep fonts
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts",
    "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
_WIDE_ONES = ("cjk", "noto", "unifont", "fallback", "arialuni", "wqy", "pingfang", "msyh", "malgun", "nirmala")
_MOST_FONTS = 400  # files that are tried
_NOBODY = "\U0010fffd"  # a private code point: no font of a language draws it
_PILLOWS = ""  # the place of the font that comes with Pillow


def lettered(text: str, size: int) -> tuple[str, Font]:
    """A text as it can be drawn, and the font for it.

    ASCII is drawn in Pillow's own font, so that pictures are the same on every machine; other letters in the bundled
    font or, where it lacks one, in that of this machine which has the most of them. A letter that none has becomes its
    code point, such as U+56FE, so that a name can still be told from another.
    """
    place = _place_for(frozenset(text))
    return "".join(c if _draws(place, c) else f"U+{ord(c):04X}" for c in text), _loaded(place, size)


@lru_cache(maxsize=4096)
def _place_for(letters: frozenset[str]) -> str:
    best, most = _PILLOWS, -1
    for place in (_PILLOWS, str(BUNDLED), *_of_machine()):
        known = sum(_draws(place, letter) for letter in letters)
        if known > most:
            best, most = place, known
        if known == len(letters):
            break
    return best


@lru_cache(maxsize=65536)
def _draws(place: str, letter: str) -> bool:
    """Whether a font has a letter: what it draws is not what it draws for letters that it lacks."""
    if place == _PILLOWS and letter.isascii():
        return True
    try:
        font = _loaded(place, 24, ImageFont.Layout.BASIC)  # a letter alone, without a circle for it to stand on
        return bytes(font.getmask(letter)) != bytes(font.getmask(_NOBODY))
    except (OSError, ValueError):  # a file that is no font
        return False


@lru_cache(maxsize=64)
def _loaded(place: str, size: int, layout: ImageFont.Layout | None = None) -> Font:
    return ImageFont.truetype(place, size, layout_engine=layout) if place else ImageFont.load_default(size)


@cache
def _of_machine() -> tuple[str, ...]:
    """The fonts of this machine, those of many scripts first."""

    def files() -> Iterator[Path]:
        for folder in map(os.path.expanduser, FOLDERS):
            for path, _, names in os.walk(folder):
                yield from (Path(path, name) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc")))

    found = sorted(islice(files(), _MOST_FONTS))
    found.sort(key=lambda file: not any(word in file.name.lower() for word in _WIDE_ONES))
    return tuple(map(str, found))
