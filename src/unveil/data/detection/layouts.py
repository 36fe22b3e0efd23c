"""Which layout of boxes and masks a folder has: COCO's, YOLO's or Pascal VOC's, and its sets to train and to test."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...runs.console import quoted, user_path
from .. import listing
from .annotations import DetectionPair, DetectionSet
from .coco import is_coco, read_coco
from .files import pictures_in
from .labels import text_of, voc_set, yolo_config, yolo_set

BoxLayout = Literal["auto", "coco", "yolo", "voc"]
_CLASSES = "classes.txt"  # the names of classes, a line each: beside images/ and labels/, or in labels/
_HELD_OUT = 5  # one in so many, where there is no test set
_NEEDED = (
    "COCO's annotations/instances_*.json beside folders of images, or one JSON beside images/; YOLO's labels/ beside"
    " images/; Pascal VOC's Annotations/ beside JPEGImages/"
)


def open_detection(data: str, test_data: str | None = None, layout: BoxLayout = "auto") -> DetectionPair:
    """The sets at an address, and at another one for the test: its val or test, else all of it.

    Where there is no test set, the last fifth is held out: neighbouring images often look alike. Raises
    FileNotFoundError where nothing is there, ValueError where a set is of no known layout, is not as its format says,
    or has no objects, and where two sets have other classes.
    """
    sets = _open(data, layout)
    others = sets if test_data is None else _open(test_data, layout)
    train = sets.get("train") or next(iter(sets.values()))
    test = others.get("val") or others.get("test")
    if test is None and test_data is not None:
        test = next(iter(others.values()))
    if test is None or test is train:
        first = len(train) - max(1, len(train) // _HELD_OUT)
        if first < 1:
            raise ValueError(f"{data} has a single image; at least 2 are needed, one to train on and one to test on")
        pair = DetectionPair(train.only(range(first)), train.only(range(first, len(train))), True)
    else:
        pair = DetectionPair(train, _same_classes(train, test), False)
    for what, own in (("train on", pair.train), ("test on", pair.test)):
        if not any((~one.crowd).any() for one in own.objects):
            left = "".join(f"; left out or changed were {n:,} {kind}" for kind, n in own.counts.items())
            raise ValueError(f"none of the {len(own)} images of {own.address} to {what} has an object{left}")
    return pair


def _same_classes(train: DetectionSet, test: DetectionSet) -> DetectionSet:
    """The test set with the classes of the training set, by name. Raises ValueError for a class that this has not."""
    if train.classes == test.classes:
        return test
    numbers = {name: number for number, name in enumerate(train.classes)}
    present = {test.classes[label] for one in test.objects for label in one.labels.tolist()}
    if unknown := sorted(present - numbers.keys()):
        raise ValueError(
            f"{test.address} has objects of {len(unknown)} classes that {train.address} has not, e.g."
            f" {quoted(unknown[0])} (there: {', '.join(train.classes[:5])}, ...); both need the same names"
        )
    new = np.array([numbers.get(name, 0) for name in test.classes] or [0])
    objects = [replace(one, labels=new[one.labels]) for one in test.objects]
    return replace(test, objects=objects, classes=train.classes)


def _open(address: str, layout: BoxLayout) -> dict[str, DetectionSet]:
    path = user_path(address)
    if path.is_file() and path.suffix == ".json":
        return {"train": read_coco(path, _beside(path), address)}
    root = listing.existing_folder(address, f"Boxes are in {_NEEDED}")
    for name, opened in _LAYOUTS.items():
        if layout in ("auto", name) and (sets := opened(root, address)):
            if "train" not in sets and len(sets) > 1:
                listed = ", ".join(sets)
                raise ValueError(f"{address} has the sets {listed} and no train; name one of their files by --data")
            return sets
    inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    wanted = "of no known layout of boxes" if layout == "auto" else f"not of the layout {layout}"
    raise ValueError(f"{address!r} is {wanted}, it holds {inside}: needed is {_NEEDED}")


def _split_of(name: str) -> str:
    """The split that a name begins with: of `instances_val2017` it is val; train where it begins with none."""
    lower = name.lower().removeprefix("instances_").strip("_")
    for split, words in listing.SPLITS.items():
        if lower.startswith(words):
            return split
    return "train"


def _coco(root: Path, address: str) -> dict[str, DetectionSet]:
    """`annotations/instances_*.json`; or a JSON in each folder of a split; or one JSON in the folder."""
    files = {
        _split_of(file.stem): file for file in sorted((root / "annotations").glob("instances_*.json"), reverse=True)
    }
    if not files:
        inside = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
        for folder in inside:
            if any(folder.name.lower() in words for words in listing.SPLITS.values()):
                files |= {_split_of(folder.name): file for file in folder.glob("*.json") if is_coco(file)}
    if not files:
        single = [
            file for place in (root, root / "annotations") for file in sorted(place.glob("*.json")) if is_coco(file)
        ]
        if len(single) > 1:
            both = " and ".join(file.name for file in single[:2])
            raise ValueError(
                f"{address} has several JSONs of COCO, {both}, ...: name one by --data, or call them"
                " annotations/instances_train.json and annotations/instances_val.json"
            )
        files = dict(zip(("train",), single, strict=False))
    return {split: read_coco(file, _beside(file), _place(address, split, files)) for split, file in files.items()}


def _place(address: str, split: str, files: Mapping[str, Path]) -> str:
    return f"{address} ({split})" if len(files) > 1 else address


def _beside(file: Path) -> list[Path]:
    """Where the images of a JSON may lie: a folder named as its split, images/, beside it or above."""
    name = file.stem.removeprefix("instances_")
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    folders = [above / name, above / "images" / name, above / "images", above / _split_of(name), above, file.parent]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _yolo(root: Path, address: str) -> dict[str, DetectionSet]:
    """`images/` and `labels/`, each with folders of splits or without; or both in a folder of each split.

    A `data.yaml` may say which images are of which split: a folder, or a text that lists them.
    """
    classes, told = _yolo_names(root)
    places = _told_places(root, told)
    for split, words in listing.SPLITS.items():
        for word in words:
            one, other = root / word / "images", root / word / "labels"
            if one.is_dir() and other.is_dir():
                places.setdefault(split, (one, other, None))
    for split, folder in _split_folders(root, address, {images for images, *_ in places.values()}).items():
        places.setdefault(split, (root / "images" / folder, root / "labels" / folder, None))
    if not places and (root / "images").is_dir() and (root / "labels").is_dir():
        places["train"] = root / "images", root / "labels", None
    sets = {}
    there = {
        labels: {file for file in labels.rglob("*.txt") if file.name != _CLASSES} for _, labels, _ in places.values()
    }
    if not any(there.values()):
        return {}  # pictures of labels, not texts
    for split, (images, labels, chosen) in places.items():
        names = pictures_in(images)
        own_texts = there[labels]
        if chosen is not None:
            names = [name for name in names if name in chosen]
            own_texts = {labels / f"{name.rpartition('.')[0]}.txt" for name in chosen} & own_texts
        texts = [labels / f"{name.rpartition('.')[0]}.txt" for name in names]
        if own_texts.isdisjoint(texts):
            raise ValueError(
                f"{labels} has {len(own_texts)} texts, of which none has the name of one of the {len(names)} images"
                f" of {images}; both need the same names"
            )
        pairs = [(name, text if text in own_texts else None) for name, text in zip(names, texts, strict=True)]
        missing = [f"{text.relative_to(labels).with_suffix('')}" for text in sorted(own_texts.difference(texts))]
        own = yolo_set(
            address if len(places) == 1 else f"{address} ({split})", images, pairs, classes, "kpt_shape" in told
        )
        sets[split] = replace(own, missing=(*own.missing, *missing))
    if len({own.classes for own in sets.values()}) > 1 and not classes:  # not named: the most that any text holds
        most = max((own.classes for own in sets.values()), key=len)
        sets = {split: replace(own, classes=most) for split, own in sets.items()}
    return sets


def _yolo_names(root: Path) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The names of classes, and what else a `data.yaml` tells; both may be empty."""
    for name in ("data.yaml", "dataset.yaml", "data.yml"):
        if (root / name).is_file():
            return yolo_config(root / name)
    places = [root / _CLASSES, root / "obj.names", *sorted((root / "labels").rglob(_CLASSES))]
    named = [place for place in places if place.is_file()]
    return tuple(filter(None, map(str.strip, text_of(named[0]).splitlines()))) if named else (), {}


_YoloPlace = tuple[Path, Path, frozenset[str] | None]  # folders of images and of texts, and which images, if not all


def _told_places(root: Path, told: Mapping[str, Any]) -> dict[str, _YoloPlace]:
    """Where a `data.yaml` says that the images of each split are: of the path that it names, the end that is there.

    A validation set that is the training set is left out. Raises ValueError for several folders of a split.
    """
    places: dict[str, _YoloPlace] = {}
    for split, words in listing.SPLITS.items():
        entry = next((told[word] for word in words if told.get(word)), None)
        entry = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
        if isinstance(entry, list):
            raise ValueError(f"data.yaml names several places for {split}; put their images into one folder")
        parts = [part for part in str(entry or "").replace("\\", "/").split("/") if part not in ("", ".", "..")]
        ends = (root.joinpath(*parts[k:]) for k in range(len(parts)))
        place = next((end for end in ends if end.exists()), root)
        made: _YoloPlace
        if place.suffix == ".txt":
            lines = (line.strip().replace("\\", "/") for line in text_of(place).splitlines())
            listed = frozenset(f"/{line}".rpartition("/images/")[2] for line in lines if line)
            made = root / "images", root / "labels", listed
        else:
            above, slash, below = f"/{place.relative_to(root).as_posix()}".rpartition("/images")
            made = place, root / above.strip("/") / "labels" / below.strip("/") if slash else place, None
        if made[0].is_dir() and made[1].is_dir() and made[0] != made[1] and made not in places.values():
            places[split] = made
    return places if "train" in places else {}


def _split_folders(root: Path, address: str, known: Collection[Path]) -> dict[str, str]:
    """The folders of `images/` that are named as a split, such as train2017, and are in `labels/` too."""
    found: dict[str, str] = {}
    for folder in sorted((root / "images").iterdir()) if (root / "images").is_dir() else ():
        split = next((s for s, words in listing.SPLITS.items() if folder.name.lower().startswith(words)), None)
        if split is None or folder in known or not (root / "labels" / folder.name).is_dir():
            continue
        if split in found:
            raise ValueError(
                f"{address} has several folders of {split}, images/{found[split]} and images/{folder.name}; say by"
                f" `{split}: images/{folder.name}` in data.yaml which one is meant"
            )
        found[split] = folder.name
    return found


def _voc(root: Path, address: str) -> dict[str, DetectionSet]:
    """`Annotations/` and `JPEGImages/` with the splits of `ImageSets/Main`, or XML files beside their images."""
    xml, images = root / "Annotations", root / "JPEGImages"
    if not xml.is_dir():
        folders = {_split_of(e.name): e for e in sorted(root.iterdir()) if e.is_dir() and any(e.glob("*.xml"))}
        folders = folders or ({"train": root} if any(root.glob("*.xml")) else {})
        return _voc_sets({split: (folder, folder, None) for split, folder in folders.items()}, address)
    images = images if images.is_dir() else root / "images"
    if not images.is_dir():
        raise ValueError(f"{address} has Annotations/ and no JPEGImages/: put the images there")
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val", "test")}
    chosen = {
        s: [line.split()[0] for line in text_of(file).splitlines() if line.split()]
        for s, file in lists.items()
        if file.is_file()
    }
    chosen = {split: names for split, names in chosen.items() if any((xml / f"{n}.xml").is_file() for n in names)}
    if "train" not in chosen:
        return _voc_sets({"train": (images, xml, None)}, address)
    return _voc_sets({split: (images, xml, names) for split, names in chosen.items()}, address)


def _voc_sets(places: Mapping[str, tuple[Path, Path, list[str] | None]], address: str) -> dict[str, DetectionSet]:
    sets: dict[str, DetectionSet] = {}
    classes: tuple[str, ...] = ()
    for split, (images, xml, names) in places.items():
        by_stem = {name.rsplit(".", 1)[0]: name for name in pictures_in(images)}
        told = {file.relative_to(xml).with_suffix("").as_posix() for file in xml.rglob("*.xml")}
        stems = sorted(by_stem.keys() | told) if names is None else names
        pairs = [(by_stem[stem], xml / f"{stem}.xml") for stem in stems if stem in by_stem and stem in told]
        if not pairs:
            raise ValueError(f"no XML of {xml} has the name of an image of {images}; both need the same names")
        place = address if len(places) == 1 else f"{address} ({split})"
        own = voc_set(place, images, pairs, classes)
        if unlabelled := sum(stem in by_stem and stem not in told for stem in stems):
            own = replace(own, counts={**own.counts, "images without an XML": unlabelled})
        missing = tuple(stem for stem in stems if stem not in by_stem)
        sets[split] = replace(own, missing=(*own.missing, *missing))
        classes = classes or sets[split].classes
    return sets


_LAYOUTS: Mapping[str, Callable[[Path, str], dict[str, DetectionSet]]] = {"coco": _coco, "yolo": _yolo, "voc": _voc}
