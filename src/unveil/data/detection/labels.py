"""Labels in a file beside each image: YOLO's text of boxes or polygons, and Pascal VOC's XML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from ...runs.console import quoted
from ..decode import Unreadable
from ..regular_files import read_bytes
from .annotations import Annotation, Counts, DetectionSet, objects_of
from .files import size_of
from .masks import Polygons

_BYTES = 16 << 20  # of a label file, beyond which it is none


def text_of(file: Path) -> str:
    """The text of a small file. Raises ValueError for a large one, and for one that is no text."""
    data = read_bytes(file, str(file))
    if len(data) > _BYTES:
        raise ValueError(f"{file} has {len(data):,} bytes; labels of an image are below {_BYTES:,}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from error


def yolo_set(
    address: str,
    root: Path,
    pairs: Sequence[tuple[str, Path | None]],
    classes: tuple[str, ...],
    has_keypoints: bool = False,
) -> DetectionSet:
    """Images, paths below `root`, each with its text of lines `class x y width height` or `class x y x y x y ...`.

    Numbers are shares of the image's sides. Where a line `has_keypoints`, what follows its box is left out, counted.
    An image without a text, or with an empty one, has no objects; one that cannot be read is left out as missing.
    Without names, classes are as many as the texts hold. Raises ValueError, with file and line, for what is no such
    line or no such class.
    """
    counts, missing = Counts(), []
    files, sizes, given = [], [], []
    for name, labels in pairs:
        try:
            size = size_of(root / name)
        except Unreadable:
            missing.append(name)
            continue
        lines = [] if labels is None else text_of(labels).splitlines()
        words = [(line.split(), f"{labels}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
        if has_keypoints:
            counts.of["poses, of which the box alone is read"] += sum(len(own) > 5 for own, _ in words)
        made = [_yolo(own[:5] if has_keypoints else own, size, where) for own, where in words]
        files.append(name)
        sizes.append(size)
        given.append(made)
    highest = max((one.label for own in given for one in own), default=-1)
    classes = classes or tuple(map(str, range(highest + 1)))
    if highest >= len(classes):
        raise ValueError(
            f"the labels of {address} hold the class {highest}, and {len(classes)} are named (0 to {len(classes) - 1}):"
            " complete names in data.yaml, or correct the labels"
        )
    objects = [objects_of(own, *size, counts) for own, size in zip(given, sizes, strict=True)]
    return DetectionSet(address, root, files, sizes, objects, classes, counts.facts(), tuple(missing))


def _yolo(words: Sequence[str], size: tuple[int, int], where: str) -> Annotation:
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise ValueError(f"{where}: class and numbers are needed; got {quoted(' '.join(words)[:60])}") from error
    if not 0 <= label < 1 << 16 or not all(math.isfinite(n) and abs(n) < 1e6 for n in numbers):
        raise ValueError(f"{where}: a class from 0 and finite numbers are needed; got {quoted(' '.join(words)[:60])}")
    if len(numbers) == 4:
        x, y, width, height = np.array(numbers) * [size[1], size[0], size[1], size[0]]
        return Annotation((x - width / 2, y - height / 2, x + width / 2, y + height / 2), label)
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        ring = np.array(numbers).reshape(-1, 2) * [size[1], size[0]]
        (x0, y0), (x1, y1) = ring.min(0), ring.max(0)
        return Annotation((x0, y0, x1, y1), label, mask=Polygons((ring,)))
    raise ValueError(f"{where}: a box is 4 numbers after the class, a polygon at least 6 in pairs; got {len(numbers)}")


def yolo_config(file: Path) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The class names and the content of a `data.yaml`. Raises ValueError for one without a list of names."""
    try:
        content = yaml.safe_load(text_of(file))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML ({str(error).splitlines()[0][:100]})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"names of {file} are numbered from 0 on without gaps; got {sorted(names)[:8]}")
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file} has no list of names, such as names: [ball, block]")
    return tuple(map(str, names)), content


def voc_set(address: str, root: Path, pairs: Sequence[tuple[str, Path]], classes: tuple[str, ...] = ()) -> DetectionSet:
    """Images, paths below `root`, each with its XML of Pascal VOC; classes by name, in alphabetical order.

    Objects that are marked as difficult count as crowds: nothing is learned or measured from them. Pixels count from 1
    in these files. Raises ValueError, with the file, for what is no such XML.
    """
    counts, files, sizes, found, missing = Counts(), [], [], [], []
    for name, file in pairs:
        size, own = _voc(file)
        try:
            sizes.append(size or size_of(root / name))
        except Unreadable:
            missing.append(name)
            continue
        files.append(name)
        found.append(own)
    there = tuple(sorted({name for own in found for name, *_ in own}))
    if classes and (unknown := sorted(set(there) - set(classes))):
        raise ValueError(f"{address} has objects of {quoted(unknown[0])}, which the training images have not")
    classes = classes or there
    if not classes:
        raise ValueError(f"the {len(pairs)} XML files of {address} hold no object")
    objects = [
        objects_of([Annotation(box, classes.index(name), hard) for name, box, hard in own], *size, counts)
        for own, size in zip(found, sizes, strict=True)
    ]
    return DetectionSet(address, root, files, sizes, objects, classes, counts.facts(), tuple(missing))


Found = tuple[str, tuple[float, float, float, float], bool]


def _voc(file: Path) -> tuple[tuple[int, int] | None, list[Found]]:
    """Height and width where the file tells, and its objects: name, box, whether it is difficult."""
    text = text_of(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{file} declares a document type, which is not read; export the annotations again")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file} is no XML ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"{file} is a <{quoted(root.tag[:40])}>; an <annotation> of Pascal VOC is needed")
    sides = [_number(root, f"size/{side}", file, least=0) for side in ("height", "width")]
    size = None if None in sides or 0 in sides else (int(sides[0] or 0), int(sides[1] or 0))
    found: list[Found] = []
    for number, one in enumerate(root.iter("object"), start=1):
        name = (one.findtext("name") or "").strip()
        corners = [_number(one, f"bndbox/{side}", file) for side in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in corners:
            raise ValueError(f"{file}: object {number} has no name, or a bndbox without xmin, ymin, xmax or ymax")
        x0, y0, x1, y1 = (float(corner or 0) for corner in corners)
        found.append((name, (x0 - 1, y0 - 1, x1, y1), bool(_number(one, "difficult", file))))
    return size, found


def _number(node: ElementTree.Element, path: str, file: Path, least: float = -1e6) -> float | None:
    text = node.findtext(path)
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= 1 << 20:
        raise ValueError(f"{file}: {path} is a number of pixels; got {quoted(text.strip()[:40])}")
    return value
