"""The names of classes: of well-known sets, and of a file beside the labels."""

from __future__ import annotations

from pathlib import Path

NYU40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter"),
    *("blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling"),
    *("books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person"),
    *("night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop"),
)
CAMVID = (*("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),)


def numbered(count: int, first: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(f"class {first + k}" for k in range(count))


def named(file: Path) -> tuple[str, ...]:
    """The names in a file, one a line; none where there is no such file.

    A line of several columns after a head that ends in "Name" (ADE20K's objectInfo150.txt) is named by its last one,
    the first of its synonyms.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text: the names of classes are needed, one a line ({error})") from error
    if lines and lines[0].split("\t")[-1].strip().lower() == "name":
        return tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines[1:])
    return tuple(line.strip() for line in lines)
