"""The picture files of a run, and the image operations that make them.

Images are uint8 arrays `H W 3`; a grid is (rows, columns) of patches, numbered row by row.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt8
from PIL import Image

from ..runs.atomic import make_folder, write_bytes, write_json

Picture = UInt8[np.ndarray, "H W 3"]
Grid = tuple[int, int]
THUMBNAIL = 32  # pixels of the side of an image on the sheet of a map
_OF_ALL = ("original", "hidden", "reconstructed", "attention")  # in the index; pictures of some runs are in `more`


@dataclass(frozen=True)
class Probe:
    """A fixed map of a held-out sample, in pictures of one epoch by name.

    The names: `original`, `hidden` (its mask), `reconstructed`, `attention`, `teacher`, `blend`; `draw NAME`, the mask
    of a sampler; `from NAME`, the prediction from that modality alone; `features`, the distance of predicted and true
    features; `unaided`, the prediction without the true patches' mean and deviation; `interpolated`, what the visible
    pixels alone give; `mask K` and `predicted K`, further masks of the same map and the predictions under them.
    `errors` has, for some of these, the root mean square error of hidden pixels as a share of the range of values (of
    classes, the share of wrong pixels). `hidden_patches` are the ids of the patches hidden, of a `grid` of rows and
    columns.
    """

    name: str
    pictures: Mapping[str, Picture]
    errors: Mapping[str, float] = field(default_factory=dict)
    hidden_patches: Sequence[int] = ()
    grid: Grid = (0, 0)


@dataclass(frozen=True)
class Near:
    """A query, or a neighbour with its distance from one; with its label where there is one.

    `alike` counts the near-duplicates of the neighbour that are left out.
    """

    image: Picture
    distance: float = 0.0
    label: str | None = None
    alike: int = 0


@dataclass(frozen=True)
class NearRow:
    """A query, its neighbours by features and, beside them, those by colour alone; nearest first."""

    query: Near
    neighbours: Sequence[Near]
    by_colour: Sequence[Near] = ()


@dataclass(frozen=True)
class PatchImage:
    """An image, its patches' features as colours, the attention of all heads, and `codes` N K of its patches (int8).

    Products of codes over 127 squared are about the cosines of features, less the average features of their places.
    """

    name: str
    original: Picture
    principal: Picture
    heads: UInt8[np.ndarray, "h w 3"]
    codes: Int8[np.ndarray, "N K"]
    grid: Grid


@dataclass(frozen=True)
class MapImage:
    """An image on a map of many, at `place` (x, y) in [0, 1]."""

    name: str
    picture: Picture
    place: tuple[float, float]
    label: str | None = None


def write_probes(
    run_dir: str | Path,
    epoch: float,
    step: int,
    items: Sequence[Probe],
    norm_pix: bool,
    note: str = "",
    keys: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Add the probes of one step to `pictures/` in a run folder, or replace them.

    `note` is a sentence for the reader, such as how channels are shown; `keys` are the legends of colours, from the
    `to_dict` of a `Bar` or a `Legend`.
    """
    folder = _pictures(run_dir)
    entries = []
    for i, item in enumerate(items):
        files = {name: f"step{step:08d}-probe{i}-{name.replace(' ', '-')}.png" for name in item.pictures}
        for name, image in item.pictures.items():
            write_bytes(folder / files[name], png(image))
        of_all = {name: files.pop(name) for name in _OF_ALL if name in files}
        entry: dict[str, Any] = {"probe": i, "attention": None, **of_all, "more": files}
        entry["errors"] = {name: float(error) for name, error in item.errors.items() if np.isfinite(error)}
        if item.grid != (0, 0):
            entry |= {"hidden_patches": [int(patch) for patch in item.hidden_patches], "grid": list(item.grid)}
        entries.append(entry)
    epochs = [e for e in _epochs_so_far(folder / "index.json") if e.get("step") != step]
    epochs.append({"epoch": epoch, "step": step, "items": entries})
    epochs.sort(key=lambda e: e.get("step", 0))
    probes = [{"name": item.name} for item in items]
    index = {"probes": probes, "epochs": epochs, "norm_pix": norm_pix, "note": note, "keys": list(keys)}
    write_json(folder / "index.json", index)


def write_neighbours(run_dir: str | Path, rows: Sequence[NearRow]) -> None:
    """Write `pictures/neighbours.json` and its images: per row a query and its neighbours, nearest first."""
    folder = _pictures(run_dir)

    def entries(names: str, neighbours: Sequence[Near]) -> list[dict[str, Any]]:
        written = []
        for n, near in enumerate(neighbours):
            name = f"{names}{n}.png"
            write_bytes(folder / name, png(near.image))
            one = {"image": name, "distance": float(near.distance), "label": near.label, "alike": near.alike}
            written.append(one)
        return written

    described = []
    for q, row in enumerate(rows):
        write_bytes(folder / f"query{q}.png", png(row.query.image))
        near, alone = entries(f"query{q}-near", row.neighbours), entries(f"query{q}-colour", row.by_colour)
        one = {"query": f"query{q}.png", "query_label": row.query.label, "neighbours": near, "by_colour": alone}
        described.append(one)
    write_json(folder / "neighbours.json", described)


def write_patches(run_dir: str | Path, images: Sequence[PatchImage]) -> None:
    """Write `pictures/patches.json` and its images: features and attention of the patches of a few images."""
    folder = _pictures(run_dir)
    described = []
    for i, image in enumerate(images):
        files = {"original": image.original, "principal": image.principal, "heads": image.heads}
        for name, picture in files.items():
            write_bytes(folder / f"patches{i}-{name}.png", png(picture))
        one: dict[str, Any] = {name: f"patches{i}-{name}.png" for name in files}
        one |= {"name": image.name, "grid": list(image.grid), "width": image.codes.shape[1]}
        one["less_place"] = True  # runs of earlier versions show features with what their place adds
        described.append({**one, "codes": base64.b64encode(image.codes.tobytes()).decode()})
    write_json(folder / "patches.json", described)


def write_map(
    run_dir: str | Path,
    method: str,
    images: Sequence[MapImage],
    duplicates: Sequence[tuple[int, int, float]],
    outliers: Sequence[tuple[int, float]],
) -> None:
    """Write `pictures/map.json`, a sheet of thumbnails, and the pictures of near-duplicates and outliers.

    Duplicates are two numbers of images with their likeness, outliers one with its distance over the median.
    """
    folder = _pictures(run_dir)
    columns = max(1, math.ceil(math.sqrt(len(images))))
    sheet = Image.new("RGB", (columns * THUMBNAIL, -(-len(images) // columns) * THUMBNAIL))
    for i, image in enumerate(images):
        small = Image.fromarray(image.picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        sheet.paste(small, (i % columns * THUMBNAIL, i // columns * THUMBNAIL))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    write_bytes(folder / "map.jpg", buffer.getvalue())
    for i in {i for i, _ in outliers} | {i for pair in duplicates for i in pair[:2]}:
        write_bytes(folder / f"map{i}.png", png(images[i].picture))
    content = {
        "method": method,
        "sheet": "map.jpg",
        "columns": columns,
        "images": [
            {"name": image.name, "label": image.label, "place": [round(float(v), 4) for v in image.place]}
            for image in images
        ],
        "duplicates": [[i, j, round(value, 4)] for i, j, value in duplicates],
        "outliers": [[i, round(value, 3)] for i, value in outliers],
    }
    write_json(folder / "map.json", content)


def viewable(
    image: Float[np.ndarray, "C H W"], like: Float[np.ndarray, "C H W"] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """An image of any number of channels in [0, 1] as RGB.

    Of other than one or three channels the first three are shown (of two: both, and their mean), each stretched from
    the 1st to the 99th percentile of `like`, by default of the image itself.
    """
    bands = _three_bands(image)
    if len(image) not in (1, 3):
        reference = bands if like is None else _three_bands(like)
        low, high = np.percentile(reference, (1, 99), axis=(1, 2), keepdims=True)
        bands = (bands - low) / np.maximum(high - low, 1e-6)
    return (bands.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def how_viewed(channels: int) -> str:
    """What `viewable` shows of this many channels, in a sentence; empty for grey and RGB."""
    if channels in (1, 3):
        return ""
    shown = "both bands and their mean" if channels == 2 else f"the first three of {channels} bands"
    return f"Pictures show {shown} as red, green and blue, each with its contrast stretched."


def hide_patches(
    image: Picture, hidden: Int[np.ndarray, " K"] | Sequence[int], grid: Grid, shade: int = 128
) -> Picture:
    """The image with the hidden patches grey."""
    return np.where(_pixels(image, hidden, grid)[..., None], np.uint8(shade), image)


def paste(image: Picture, reconstructed: Picture, hidden: Int[np.ndarray, " K"] | Sequence[int], grid: Grid) -> Picture:
    """The image with the hidden patches taken from the reconstruction."""
    return np.where(_pixels(image, hidden, grid)[..., None], reconstructed, image)


ATTENTION_SPAN = 3.0  # doublings of an even map's attention, up and down, that the colours of attention reach


def attention_overlay(image: Picture, attention: Float[np.ndarray, "h w"], strength: float = 0.65) -> Picture:
    """An attention map in colours over the grey image, on one scale for all images and epochs.

    The colours are the logarithm of the attention over that of an even map: from 1/8 of it to 8 times as much.
    """
    attention = attention.astype(np.float32)
    even = float(attention.mean())
    doublings = np.log2(np.maximum(attention / even, 1e-6)) if even > 0 else np.zeros_like(attention)
    unit = np.clip(doublings / (2 * ATTENTION_SPAN) + 0.5, 0, 1).astype(np.float32)
    height, width = image.shape[:2]
    smooth = np.asarray(Image.fromarray(unit).resize((width, height), Image.Resampling.BILINEAR))
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    blend = strength * colours(smooth) + (1 - strength) * grey[..., None]
    return (blend + 0.5).astype(np.uint8)


def patch_values(image: Picture, values: Float[np.ndarray, "h w"], limits: tuple[float, float]) -> Picture:
    """The image with patches coloured by a value between the limits; patches with NaN stay."""
    rows, columns = values.shape
    known = _pixels(image, np.flatnonzero(np.isfinite(values)), (rows, columns))
    unit = (values - limits[0]) / (limits[1] - limits[0])
    coloured = np.kron(scalar_colours(unit), np.ones((image.shape[0] // rows, image.shape[1] // columns, 1), np.uint8))
    return np.where(known[..., None], coloured, image)


@dataclass(frozen=True)
class Ramp:
    """A colour map whose lightness rises evenly while its hue turns, in Oklab (Ottosson, 2020)."""

    first_hue: float
    last_hue: float
    chroma: float

    def __call__(self, values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
        """Values in [0, 1] as colours, dark to light."""
        t = np.clip(np.nan_to_num(values), 0, 1).astype(np.float32)
        hue = np.radians(self.first_hue + (self.last_hue - self.first_hue) * t)
        chroma = 0.04 + self.chroma * np.sin(np.pi * (0.12 + 0.74 * t))
        return _oklab(0.2 + 0.75 * t, chroma, hue)


colours = Ramp(290, 470, 0.13)  # of attention: violet, red, yellow
scalar_colours = Ramp(285, 105, 0.07)  # of measured maps such as depth: blue, green, yellow
NO_TRUTH = (40, 40, 44)  # where a map has no ground truth


def class_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """A colour for each class: hues by the golden angle, in three lightnesses, so that neighbours are far apart."""
    place = np.arange(count)
    return _oklab(np.array([0.72, 0.58, 0.84])[place % 3], np.full(count, 0.13), np.radians(25 + 137.508 * place))


def scalar_picture(
    image: Float[np.ndarray, "H W"], known: Bool[np.ndarray, "H W"], limits: tuple[float, float]
) -> Picture:
    """A map of measurements in colours between the limits; dark where there is no ground truth."""
    unit = (image - limits[0]) / max(limits[1] - limits[0], 1e-12)
    return np.where(known[..., None], scalar_colours(unit), np.array(NO_TRUTH, np.uint8))


def class_picture(ids: Int[np.ndarray, "H W"], known: Bool[np.ndarray, "H W"], count: int) -> Picture:
    """A map of class ids in their colours; dark where there is no ground truth."""
    return np.where(known[..., None], class_colours(count)[ids.clip(0, count - 1)], np.array(NO_TRUTH, np.uint8))


def _oklab(
    lightness: Float[np.ndarray, "*shape"], chroma: Float[np.ndarray, "*shape"], hue: Float[np.ndarray, "*shape"]
) -> UInt8[np.ndarray, "*shape 3"]:
    """Oklab, in polar coordinates -> sRGB."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear = ((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels: np.ndarray = (srgb * 255 + 0.5).astype(np.uint8)
    return pixels


def png(image: Picture) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


# Oklab to cone responses, and cone responses to linear sRGB (Ottosson, 2020).
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def _three_bands(image: Float[np.ndarray, "C H W"]) -> Float[np.ndarray, "3 H W"]:
    image = np.nan_to_num(image.astype(np.float32))
    if len(image) == 2:
        return np.concatenate([image, image.mean(axis=0, keepdims=True)])
    return np.repeat(image, 3, axis=0) if len(image) == 1 else image[:3]


def _pixels(image: Picture, patches: Int[np.ndarray, " K"] | Sequence[int], grid: Grid) -> Bool[np.ndarray, "H W"]:
    """Which pixels lie in the patches."""
    (height, width), (rows, columns) = image.shape[:2], grid
    if height % rows or width % columns:
        raise ValueError(f"a grid of {rows} x {columns} patches does not divide an image of {height} x {width} pixels")
    inside = np.zeros(rows * columns, bool)
    inside[np.asarray(patches, np.int64)] = True
    return np.kron(inside.reshape(rows, columns), np.ones((height // rows, width // columns), bool))


def _pictures(run_dir: str | Path) -> Path:
    folder = Path(run_dir) / "pictures"
    make_folder(folder)
    return folder


def _epochs_so_far(index: Path) -> list[dict[str, Any]]:
    """The epochs in the index; none where it cannot be read."""
    try:
        return [e for e in json.loads(index.read_text())["epochs"] if isinstance(e, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
