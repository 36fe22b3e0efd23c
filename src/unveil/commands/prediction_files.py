"""The files of predictions: tables of classes, masks, maps of depth, pictures of all three."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

from ..data.decode import EXTENSIONS
from ..modeling.types import to_float
from ..reporting.lettering import lettered
from ..reporting.pictures import Picture, class_colours, class_picture, scalar_picture, viewable
from ..runs.atomic import make_folder, replacing
from ..runs.regular_files import stays_below

Format = Literal["csv", "jsonl"]
DEPTH_UNITS = (0.001, 0.01, 0.1, 1.0)  # metres of a number in a file of 16 bits: the first whose range is enough
_LARGEST = 2**16 - 1
_DRAWN = 512  # pixels of the longer side of a drawn picture, at most
_LEAST_DRAWN = 160
_LEGEND = 8  # classes that a picture names


class FileNames:
    """A relative file for each sample, of its name: `a/b.jpg` is `a/b.png`, or `a/b.jpg.png` where that is two's."""

    def __init__(self, names: Sequence[str]):
        self.count = Counter(map(_stem, names))

    def __call__(self, name: str, suffix: str) -> Path:
        stem = _stem(name)
        return Path(f"{_below(name) if self.count[stem] > 1 else stem}{suffix}")


def _below(name: str) -> str:
    """A name as a path that stays inside of a folder."""
    if stays_below(name) and name.strip("./"):
        return name
    return name.replace("/", "_").replace("\\", "_").strip(".") or "_"


def _stem(name: str) -> str:
    path = Path(_below(name))
    return str(path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path)


Row = tuple[str, Float[np.ndarray, " K"]]


@contextmanager
def class_table(file: Path, form: Format, classes: Sequence[str], top: int | None) -> Iterator[Callable[[Row], None]]:
    """A function that adds an image's name and probabilities to a table, which appears when it is whole.

    Rows hold the name, the most probable class and its probability, then those of all classes, or of the `top` ones.
    """
    with (
        replacing(file) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out,
    ):
        table = csv.writer(out)
        if form == "csv":
            ranked = [f"{what} {rank}" for rank in range(1, (top or 0) + 1) for what in ("label", "probability")]
            table.writerow(["name", *(ranked or ["label", "probability", *classes])])

        def add(row: Row) -> None:
            name, probabilities = row
            order = np.argsort(-probabilities, kind="stable")
            chosen = order[:top] if top else range(len(classes))
            pairs = [(classes[k], f"{probabilities[k]:.6g}") for k in chosen]
            best = classes[order[0]], f"{probabilities[order[0]]:.6g}"
            if form == "csv":
                table.writerow([name, *(sum(pairs, ()) if top else (*best, *(p for _, p in pairs)))])
                return
            content = {"name": name, "label": best[0], "probability": float(best[1])}
            json.dump(content | {"probabilities": {c: float(p) for c, p in pairs}}, out, ensure_ascii=False)
            out.write("\n")

        yield add


def write_mask(file: Path, ids: Int[np.ndarray, "H W"], first: int, void: int | None, count: int) -> None:
    """A PNG of class ids as the training labels store them, with a palette where they fit a byte."""
    stored = ids + first
    if first + count > 256:
        _save(file, Image.fromarray(stored.astype(np.uint16)))
        return
    picture = Image.fromarray(stored.astype(np.uint8), mode="L")
    colours = np.zeros((256, 3), np.uint8)
    colours[first : first + count] = class_colours(count)
    if void is not None and 0 <= void < 256 and not first <= void < first + count:
        colours[void] = 255
    picture.putpalette(colours.tobytes())
    _save(file, picture)


def depth_unit(largest: float) -> float:
    """The metres of one number in files of 16 bits that hold distances up to `largest` metres, at least."""
    return next((unit for unit in DEPTH_UNITS if largest <= unit * _LARGEST), DEPTH_UNITS[-1])


def write_depth(file: Path, metres: Float[np.ndarray, "H W"], unit: float) -> int:
    """A PNG of 16 bits, its unit in a text field; returns how many pixels lie outside of its range, and are cut."""
    numbers = np.rint(metres / unit)
    info = PngImagePlugin.PngInfo()
    info.add_text("unit", f"{unit:g} m")
    picture = Image.fromarray(numbers.clip(1, _LARGEST).astype(np.uint16))  # 0 means no depth
    _save(file, picture, pnginfo=info)
    return int(((numbers < 1) | (numbers > _LARGEST)).sum())


def draw_classes(file: Path, image: Tensor, names: Sequence[str], probabilities: Sequence[float]) -> None:
    """A picture with its most probable classes below."""
    lines = [f"{p:.0%}  {name}" for name, p in zip(names, probabilities, strict=True)]
    _save(file, _captioned([_drawable(image)], [(line, None) for line in lines]))


def draw_mask(file: Path, image: Tensor, ids: Int[np.ndarray, "H W"], classes: Sequence[str]) -> None:
    """A picture, and its classes in colours over it; the largest ones are named."""
    picture = _drawable(image)
    known = np.ones_like(ids, dtype=bool)
    colours = class_picture(ids, known, len(classes))
    mixed = (0.45 * _of_size(picture, colours.shape[:2]) + 0.55 * colours).astype(np.uint8)
    share = np.bincount(ids.flatten(), minlength=len(classes)) / ids.size
    largest = [int(k) for k in np.argsort(-share)[:_LEGEND] if share[k] > 0]
    palette = class_colours(len(classes))
    lines = [(f"{classes[k]}  {share[k]:.0%}", tuple(map(int, palette[k]))) for k in largest]
    _save(file, _captioned([picture, mixed], lines))


def draw_depth(file: Path, image: Tensor, metres: Float[np.ndarray, "H W"]) -> None:
    """A picture beside its depth, near dark and far light, with the limits of the colours."""
    low, high = (float(value) for value in np.percentile(metres, (1, 99)))
    near, far = (1 / max(value, 1e-3) for value in (low, high))  # inverse depth, in which near things differ
    shown = scalar_picture(1 / np.maximum(metres, 1e-3), np.ones_like(metres, dtype=bool), (far, near))
    _save(file, _captioned([_drawable(image), shown], [(f"from {low:.2f} m (light) to {high:.2f} m (dark)", None)]))


def _drawable(image: Tensor) -> Picture:
    return viewable(to_float(image).float().clamp(0, 1).numpy())


def _of_size(picture: Picture, size: tuple[int, ...]) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0])))


def _captioned(pictures: Sequence[Picture], lines: Sequence[tuple[str, tuple[int, ...] | None]]) -> Image.Image:
    """Pictures side by side, with lines of text below, some with a square of their colour."""
    height, width = pictures[0].shape[:2]
    scale = min(_DRAWN / max(height, width), max(1.0, _LEAST_DRAWN / min(height, width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    line, left = 20, 8
    sheet = Image.new("RGB", (len(pictures) * size[0], size[1] + line * len(lines) + left), "white")
    for place, picture in enumerate(pictures):
        way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
        sheet.paste(Image.fromarray(picture).resize(size, way), (place * size[0], 0))
    draw = ImageDraw.Draw(sheet)
    for row, (text, colour) in enumerate(lines):
        y = size[1] + left // 2 + row * line
        if colour is not None:
            draw.rectangle((left, y + 3, left + 12, y + 15), fill=colour)
        text, font = lettered(text, 14)
        draw.text((left + 18 * (colour is not None), y), text, fill="black", font=font)
    return sheet


def _save(file: Path, picture: Image.Image, **options: Any) -> None:
    make_folder(file.parent)
    with replacing(file) as temporary:
        picture.save(temporary, format="JPEG" if file.suffix == ".jpg" else "PNG", **options)


def summary(facts: Mapping[str, Any], unreadable: Sequence[str], count: int, **more: Any) -> dict[str, Any]:
    """The content of `predictions.json`: which head, of which weights and data, on how many images."""
    return {"head": dict(facts), "images": count, "unreadable": list(unreadable), **more}
