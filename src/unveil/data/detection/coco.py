"""The JSON of COCO: images, categories, annotations with boxes, polygons or run lengths, and crowds."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ...runs.console import quoted
from ..decode import Unreadable
from ..regular_files import path_in, read_bytes
from .annotations import MOST_SIDE, Annotation, Counts, DetectionSet, finite, objects_of, shown, whole_number
from .files import LEAST_THERE, present, size_of
from .masks import InstanceMask, Polygons, run_lengths

T = TypeVar("T")
Entry = Mapping[str, Any]


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises ValueError with its name where it is none."""
    try:
        return json.loads(read_bytes(file, str(file)))
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({str(error)[:120]}); export the annotations again") from error


def is_coco(file: Path) -> bool:
    """Whether a JSON file is one of COCO's by its first level."""
    try:
        content = read_json(file)
    except ValueError:
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def read_coco(file: Path, folders: Sequence[Path], address: str) -> DetectionSet:
    """The images and objects of a JSON of COCO, its images in the first of the folders that has some of them.

    Classes are numbered in the order of their ids. Raises ValueError, with the number of the entry, for what is not as
    the format says: an entry that is no object, an id that is used twice or that nothing has, a box that is no four
    finite numbers. Boxes without an area or outside their image, and masks without one, are counted.
    """
    content = read_json(file)
    try:
        return _read(content, folders, address)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:  # an entry of another type
        raise ValueError(f"{file}: {type(error).__name__} {quoted(str(error)[:80])}; {_FORM}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


_FORM = 'the file holds {"images": [...], "annotations": [...], "categories": [...]}'


def _read(content: Any, folders: Sequence[Path], address: str) -> DetectionSet:
    if not isinstance(content, dict):
        raise ValueError(f"its first level is a {type(content).__name__}; {_FORM}")
    lists = {name: content.get(name) for name in ("images", "annotations", "categories")}
    for name, entries in lists.items():
        if not isinstance(entries, list):
            raise ValueError(f"it has no list of {name}; {_FORM}")
        wrong = next((n for n, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if wrong is not None:
            raise ValueError(f"entry {wrong} of {name} is a {type(entries[wrong]).__name__}; {_FORM}")
    images, annotations, categories = (lists[name] or [] for name in lists)
    if not images:
        raise ValueError("it has no images")
    if not categories:
        raise ValueError("it has no categories: each is {'id': 1, 'name': 'ball'}")
    by_id = _numbered(categories, "category")
    names = tuple(str(by_id[number].get("name", number)) for number in sorted(by_id))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two categories are called {quoted(twice[0])}; give each a name of its own")
    label_of = {number: label for label, number in enumerate(sorted(by_id))}
    image_of = _numbered(images, "image")
    own: dict[int, list[tuple[int, Entry]]] = defaultdict(list)
    for place, entry in enumerate(annotations):
        number = whole_number(entry.get("image_id"), f"image_id of annotation {place}")
        if number not in image_of:
            count = sum(other.get("image_id") not in image_of for other in annotations)
            raise ValueError(
                f"{count} of {len(annotations)} annotations are of images that are not listed, e.g. annotation {place}"
                f" of image {number}; export images and annotations together"
            )
        kind = whole_number(entry.get("category_id"), f"category_id of annotation {place}")
        if kind not in label_of:
            count = sum(other.get("category_id") not in label_of for other in annotations)
            raise ValueError(
                f"{count} of {len(annotations)} annotations name categories that are not listed, e.g. annotation"
                f" {place} category {kind}; add it to categories, or take these annotations out"
            )
        own[number].append((place, entry))
    return _set(image_of, own, label_of, names, folders, address)


def _set(
    image_of: Mapping[int, Entry],
    own: Mapping[int, Sequence[tuple[int, Entry]]],
    label_of: Mapping[int, int],
    classes: tuple[str, ...],
    folders: Sequence[Path],
    address: str,
) -> DetectionSet:
    file_of = {number: _file_name(entry, number) for number, entry in image_of.items()}
    root, there = present(folders, list(file_of.values()))
    missing = tuple(name for name in file_of.values() if name not in there)
    if len(there) < LEAST_THERE * len(file_of):
        places = ", ".join(str(folder) for folder in folders)
        raise ValueError(
            f"{len(missing)} of its {len(file_of)} images are not there, e.g. {quoted(missing[0])}; they are looked for"
            f" in {places}: put the images there, or name their folder in file_name"
        )
    counts, files, sizes, objects = Counts(), [], [], []
    if twice := len(file_of) - len(set(file_of.values())):
        counts.of["images listed twice, with objects of their own"] = twice
    for number, entry in image_of.items():
        if file_of[number] not in there:
            continue
        path = path_in([root], file_of[number])
        size = size_of(path) if "width" not in entry or "height" not in entry else _size(entry, number)
        given = [_annotation(place, one, label_of, size, counts) for place, one in own.get(number, ())]
        files.append(file_of[number])
        sizes.append(size)
        objects.append(objects_of([one for one in given if one is not None], *size, counts))
    return DetectionSet(address, root, files, sizes, objects, classes, counts.facts(), missing)


def _numbered(entries: Sequence[Entry], what: str) -> dict[int, Entry]:
    """Entries by their ids, in their order."""
    by_id: dict[int, Entry] = {}
    for place, entry in enumerate(entries):
        number = whole_number(entry.get("id"), f"the id of {what} {place}")
        if number in by_id:
            raise ValueError(f"two entries have the id {number} of {what}; give each an id of its own")
        by_id[number] = entry
    return by_id


def _file_name(entry: Entry, number: int) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"image {number} has no file_name; got {shown(name)}")
    return name


def _size(entry: Entry, number: int) -> tuple[int, int]:
    height, width = (
        whole_number(entry[side], f"{side} of image {number}", 1, MOST_SIDE) for side in ("height", "width")
    )
    return height, width


def _annotation(
    place: int, entry: Entry, label_of: Mapping[int, int], size: tuple[int, int], counts: Counts
) -> Annotation | None:
    """An object; None, counted, where it has a mask of which no pixel or corner is left."""
    x, y, width, height = finite(entry.get("bbox"), 4, f"bbox of annotation {place}")
    told = entry.get("iscrowd", 0)
    crowd = told if isinstance(told, bool) else whole_number(told, f"iscrowd of annotation {place}", 0, 1) == 1
    area = math.nan
    if entry.get("area") is not None:
        (area,) = finite([entry["area"]], 1, f"area of annotation {place}")
        if area < 0:
            raise ValueError(f"area of annotation {place} is {area:g}; it is a number of pixels")
    mask: InstanceMask | None = None
    if (given := entry.get("segmentation")) is not None and given != []:
        mask = segmentation(given, size, f"annotation {place}", counts)
        if mask is None:
            return None
    return Annotation((x, y, x + width, y + height), label_of[entry["category_id"]], crowd, area, mask)


def segmentation(given: Any, size: tuple[int, int], what: str, counts: Counts) -> InstanceMask | None:
    """The mask of a `segmentation`: polygons, run lengths, or these compressed; None, counted, for one of nothing.

    Raises ValueError, with the name of what it is of, for anything else, and for run lengths of another image size.
    """
    if isinstance(given, dict):
        height, width = (
            whole_number(side, f"size of {what}", 0, MOST_SIDE) for side in _listed(given, "size", 2, what)
        )
        runs = given.get("counts")
        if not isinstance(runs, (str, list)):
            raise ValueError(f"the segmentation of {what} has no counts: a list, or COCO's compressed text")
        if (height, width) != size:
            raise ValueError(
                f"the segmentation of {what} is of {width} x {height} pixels, its image of {size[1]} x {size[0]}"
            )
        mask = _named(lambda: run_lengths(runs, height, width), f"the segmentation of {what}")
        if not mask.counts[1::2].sum():
            counts.of["masks without a pixel"] += 1
            return None
        return mask
    if not isinstance(given, list):
        raise ValueError(f"the segmentation of {what} is a {type(given).__name__}, not polygons or run lengths")
    rings = []
    for ring in given:
        if not isinstance(ring, list):
            raise ValueError(f"the segmentation of {what} is a list of polygons: [[x, y, x, y, x, y, ...], ...]")
        corners = finite(ring, len(ring), f"a polygon of {what}")
        if len(corners) < 6 or len(corners) % 2:
            counts.of["polygons of less than three corners"] += 1
            continue
        rings.append(_corners(corners))
    inside = [(ring.max(0) > 0).all() and (ring.min(0) < (size[1], size[0])).all() for ring in rings]
    if not any(inside):
        counts.of["masks without a pixel"] += 1
        return None
    return Polygons(tuple(rings))


def _corners(numbers: Sequence[float]) -> Float64[ndarray, "P 2"]:
    return np.array(numbers, np.float64).reshape(-1, 2)


def _listed(entry: Entry, name: str, count: int, what: str) -> list[Any]:
    value = entry.get(name)
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{name} of {what} is a list of {count} numbers; got {shown(value)}")
    return value


def _named(make: Callable[[], T], what: str) -> T:
    """What is made; its ValueError begins with what it is of."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
