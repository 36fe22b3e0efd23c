"""Images with a label per pixel, classes or depth: plain folders, ADE20K, NYUv2, Hypersim, CamVid, declared
maps, rendered scenes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from ..runs.console import user_path
from . import listing
from .aligned_folders import AlignedSource, Paths, aligned_modalities, open_samples
from .dense_dataset import DensePair, DenseSet, LabelEncoding
from .listing import are_shards, existing_folder, list_files, none_found
from .modality_config import BUILT_IN, DEPTH, RGB, SEMSEG, Declared
from .read_map import NYUV2, NYUV2_CLASSES, READ, loaded_mat

Frames = tuple[list[str], dict[str, list[str]]]  # names, and the file of each for every kind of map
FolderLayout = Literal["auto", "folders", "ade20k", "nyuv2", "hypersim", "camvid"]
NYU40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter"),
    *("blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling"),
    *("books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person"),
    *("night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop"),
)
CAMVID = (*("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),)
CAMVID_FRAMES = ("0016E5_*", "Seq05VD_*")  # of its videos: train and val have the first, test the second
FOLDERS = {  # the names that a folder of each kind of map goes by
    "rgb": ("rgb", "images", "image", "img", "imgs"),
    "depth": ("depth", "depths", "depth_raw"),
    "semseg": ("semseg", "labels_40", "labels", "label", "annotations", "masks", "mask"),
}
SPLITS = {split: listing.SPLITS[split] for split in ("train", "test", "val")}
EXTENSIONS = (*READ, ".hdf5")
_NEEDED = "Images with a label per pixel are in folders of images and of labels or depth, by the same names"
NYUV2_SPLITS, NYUV2_ARRAYS = "splits.mat", {"rgb": "images", "depth": "depths", "semseg": "labels"}
HYPERSIM_SPLITS = "metadata_images_split_scene_v1.csv"
_HELD_OUT = 5  # one in so many, where there is no test set


@dataclass(frozen=True)
class StorageOptions:
    """How labels and depth are stored, by the user's options; None leaves it to the layout.

    `declared` are maps by declaration, which covers all of this but `max_depth`.
    """

    layout: FolderLayout = "auto"
    classes: int | None = None
    ignore: int | None = None
    first_class: int | None = None
    depth_scale: float | None = None
    max_depth: float | None = None
    declared: tuple[Declared, ...] = ()

    def __post_init__(self) -> None:
        for name in ("depth_scale", "max_depth"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is a number above 0; got {value}")


def open_dense(data: str, test_data: str | None = None, stored: StorageOptions | None = None) -> DensePair:
    """The sets at an address, and at another one for the test.

    Where there is no test set, the last fifth is held out: neighbouring frames of a video look alike. Raises
    FileNotFoundError where nothing is there, ValueError where maps do not belong together.
    """
    stored = stored or StorageOptions()
    sets = _open(data, stored)
    others = _open(test_data, stored) if test_data is not None else sets
    every = (*sets.values(), *(s for s in others.values() if others is not sets))
    test = others.get("test") or others.get("val") or (others["train"] if others is not sets else None)
    if test is not None:
        return DensePair(sets["train"], test, False, every)
    whole = sets["train"]
    first = len(whole) - max(1, len(whole) // _HELD_OUT)
    if first < 1:
        raise ValueError(f"{data} has a single image; at least 2 are needed, one to train on and one to test on")
    return DensePair(whole.only(range(first)), whole.only(range(first, len(whole))), True, every)


def _open(address: str, stored: StorageOptions) -> dict[str, DenseSet]:
    if not stored.declared and are_shards(address):
        stored = replace(stored, declared=_declared_in_shards(address))
    if stored.declared or address == "scenes" or address.startswith("scenes:"):
        return _declared(address, user_path(address), stored)
    root = existing_folder(address, _NEEDED)
    layout = stored.layout if stored.layout != "auto" else _guess(root)
    if layout == "hypersim":
        listed = _hypersim_frames(root)
    elif layout == "nyuv2" and (root / NYUV2).is_file():
        listed = _nyuv2_frames(root)
    else:
        listed = {split: _listed(root, kinds) for split, kinds in _splits(root).items()}
    labels = _labels(root, layout, stored)
    declared = {
        "rgb": RGB,
        "depth": replace(DEPTH, scale=stored.depth_scale or DEPTH.scale),
        "semseg": replace(SEMSEG, void=labels.void, modality=replace(SEMSEG.modality, stride=1)),
    }
    sets = {}
    for split, (names, kinds) in listed.items():
        maps = {kind: declared[kind] for kind in kinds}
        files = {kind: Paths(paths) for kind, paths in kinds.items()}
        place = f"{address} ({split})" if len(listed) > 1 else address
        source = AlignedSource(place, root, tuple(maps.values()), names, files)
        sets[split] = DenseSet(source, range(len(names)), maps, labels, stored.max_depth)
    return sets


def _declared_in_shards(address: str) -> tuple[Declared, ...]:
    """The modalities of shards, of which those of classes have a pixel for each of the image."""
    declared = aligned_modalities(listing.split_addresses(address).get("train", address))
    if not declared:
        raise ValueError(
            f"the shards at {address!r} have no maps beside images, such as KEY.semseg.png or KEY.depth.png"
        )
    return tuple(replace(d, modality=replace(d.modality, stride=1)) if d.is_categorical else d for d in declared)


def _declared(address: str, root: Path, stored: StorageOptions) -> dict[str, DenseSet]:
    """Sets of the maps that were declared, in `train/` and `test/` where these hold them; of scenes all three."""
    given = ["layout"] * (stored.layout != "auto")
    given += [name for name in ("classes", "ignore", "first_class", "depth_scale") if getattr(stored, name) is not None]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        known = "scenes and declared maps define this already"
        raise ValueError(f"{flags}: {known}; leave it out, or write it in the .toml")
    declared = stored.declared or tuple(BUILT_IN.values())
    inside = _folders(root, SPLITS) if root.is_dir() and not (root / declared[0].folder).is_dir() else {}
    places = {split: str(folder) for split, folder in inside.items()} if "train" in inside else {"train": address}
    return {split: _of_samples(place, declared, stored.max_depth) for split, place in places.items()}


def _of_samples(address: str, declared: tuple[Declared, ...], max_depth: float | None) -> DenseSet:
    """The samples that have all declared maps; the map of classes goes by semseg, whatever its name."""
    source = open_samples(address, declared)
    rows = [row for row in range(len(source)) if all(source.has(row))]
    if not rows:
        raise ValueError(f"no sample of {address} has all of {', '.join(d.name for d in declared)}; declare fewer")
    kinds = [d for d in source.declared if d.is_categorical]
    classes = kinds[0] if len(kinds) == 1 else next((d for d in kinds if d.name == SEMSEG.name), None)
    labels = LabelEncoding()
    if classes is not None:
        count = 0 if classes.measured else classes.modality.num_classes
        labels = LabelEncoding(classes.classes or numbered(count, 0), void=classes.void)
    maps = {SEMSEG.name if d is classes else d.name: d for d in source.declared}
    return DenseSet(source, rows, maps, labels, max_depth)


def _guess(root: Path) -> FolderLayout:
    if (root / "objectInfo150.txt").is_file():
        return "ade20k"
    frames = (path for place, name in product(("*", "*/*"), CAMVID_FRAMES) for path in root.glob(f"{place}/{name}"))
    if (root / "trainannot").is_dir() or (not _own_names(root) and any(frames)):
        return "camvid"
    if (root / NYUV2).is_file() or any((root / split / "labels_40").is_dir() for split in ("train", "test", ".")):
        return "nyuv2"
    return "hypersim" if any(root.glob("ai_*_*/images")) else "folders"


def _labels(root: Path, layout: FolderLayout, stored: StorageOptions) -> LabelEncoding:
    """How a layout stores classes, with the user's options applied."""
    match layout:
        case "ade20k":
            labels = LabelEncoding(named(root / "objectInfo150.txt") or numbered(150, 1), first=1, void=None)
        case "nyuv2":
            labels = LabelEncoding(NYU40, first=1, void=None)
        case "hypersim":
            labels = LabelEncoding(NYU40, first=1, void=-1)
        case "camvid":
            labels = LabelEncoding(CAMVID, void=11)
        case _:
            names = _own_names(root)
            labels = LabelEncoding(names, void=255 if len(names) <= 255 else None)
    if stored.classes is not None and stored.classes != len(labels.names):
        if labels.names:
            raise ValueError(f"{root} has {len(labels.names)} classes by its layout, not {stored.classes}")
        if stored.classes < 2:
            raise ValueError(f"at least 2 classes are needed; got {stored.classes}")
        labels = replace(labels, names=numbered(stored.classes, stored.first_class or 0))
    first = labels.first if stored.first_class is None else stored.first_class
    return LabelEncoding(labels.names, first, labels.void if stored.ignore is None else stored.ignore)


def _own_names(root: Path) -> tuple[str, ...]:
    files = (root / name for name in ("classes.txt", "names.txt", "codes.txt"))
    return next(filter(None, map(named, files)), ())


def _splits(root: Path) -> dict[str, dict[str, Path]]:
    """The folders of each kind for each split: `train/rgb`, `rgb/train`, `train` and `trainannot`, or without."""
    if (root / "trainannot").is_dir():
        pairs = {s: {"rgb": root / s, "semseg": root / f"{s}annot"} for s in ("train", "test", "val")}
        return {s: kinds for s, kinds in pairs.items() if all(folder.is_dir() for folder in kinds.values())}
    here = _folders(root, FOLDERS)
    if here:
        inside = {kind: _folders(folder, SPLITS) for kind, folder in here.items()}
        if all("train" in splits for splits in inside.values()):
            shared = set.intersection(*(set(splits) for splits in inside.values()))
            return {s: {kind: splits[s] for kind, splits in inside.items()} for s in SPLITS if s in shared}
        return {"train": here}
    splits = {split: kinds for split, folder in _folders(root, SPLITS).items() if (kinds := _folders(folder, FOLDERS))}
    if "train" not in splits:
        held = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8]) or "no folders"
        raise ValueError(
            f"{str(root)!r} is of no known layout, it holds {held}: put images into rgb/, labels into semseg/, depth"
            " into depth/, or these three into train/ and test/"
        )
    return splits


def _folders(root: Path, known: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The folder inside a folder for each entry, the first by the order of its names; none where there is none."""
    inside = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    there = {key: [name for name in names if name in inside] for key, names in known.items()}
    return {key: inside[names[0]] for key, names in there.items() if names}


def _listed(root: Path, kinds: Mapping[str, Path]) -> Frames:
    """The samples that folders share, and the file of each; ValueError where an image has no partner."""
    stems = {kind: _stems(folder) for kind, folder in kinds.items()}
    first = next(iter(kinds))
    names = sorted(stems[first])
    for kind, paths in stems.items():
        if without := [name for name in names if name not in paths]:
            raise ValueError(
                f"{len(without)} of the {len(names)} files of {kinds[first]} have no {kind} in {kinds[kind]}, e.g."
                f" {without[0]!r}: add the files under the same names, or take those images out"
            )
    below = {kind: folder.relative_to(root) for kind, folder in kinds.items()}
    return names, {kind: [(below[kind] / paths[name]).as_posix() for name in names] for kind, paths in stems.items()}


def _stems(folder: Path) -> dict[str, str]:
    files, others = list_files(folder, EXTENSIONS)
    if not files:
        raise ValueError(f"no maps in {str(folder)!r}: {none_found(others, EXTENSIONS)}")
    return {path.rsplit(".", 1)[0]: path for path in files}


def _nyuv2_frames(root: Path) -> dict[str, Frames]:
    """The frames of the published splits: pictures, depth in metres, and the 40 classes (0 is none).

    Raises FileNotFoundError where one of the three published files is not there.
    """
    for name in (NYUV2, NYUV2_SPLITS, NYUV2_CLASSES):
        if not (root / name).is_file():
            needed = f"{NYUV2} with {NYUV2_SPLITS} and {NYUV2_CLASSES} beside it"
            raise FileNotFoundError(f"{root} has no {name}: NYUv2 is {needed}")
    splits = loaded_mat(root / NYUV2_SPLITS)
    frames = {}
    for split, key in (("train", "trainNdxs"), ("test", "testNdxs")):
        numbers = [int(n) - 1 for n in splits[key].flatten()]  # MATLAB counts from 1
        paths = {kind: [f"{NYUV2}#{array}/{n}" for n in numbers] for kind, array in NYUV2_ARRAYS.items()}
        frames[split] = [f"{n + 1:04}" for n in numbers], paths
    return frames


def _hypersim_frames(root: Path) -> dict[str, Frames]:
    """The frames of each split, tone-mapped colour with depth and classes (NYU40, void is -1).

    The split is the published one where its table lies in `root`, whose `val` is left out; else the last scenes are
    the test. Depth is the published distance from the camera's centre, not along its axis. Raises ValueError where
    there is no frame.
    """
    listed: dict[str, list[str]] = {}
    partition = _partition(root)
    pictures = sorted(root.glob("ai_*_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg"))
    scenes = sorted({path.relative_to(root).parts[0] for path in pictures})
    if not pictures:
        needed = "ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg"
        raise ValueError(f"{root} holds no frames of Hypersim: {needed} is needed")
    last = scenes[len(scenes) - max(1, len(scenes) // 5) :] if len(scenes) > 1 else []
    for path in pictures:
        scene, _, folder, file = path.relative_to(root).parts
        frame = file.removesuffix(".tonemap.jpg")
        name = f"{scene}/{folder.removesuffix('_final_preview')}/{frame}"
        split = ("test" if scene in last else "train") if partition is None else partition.get(name)
        if split in ("train", "test"):
            listed.setdefault(split, []).append(name)
    if "train" not in listed:
        raise ValueError(f"{root / HYPERSIM_SPLITS} puts none of the {len(pictures)} frames of {root} into train")
    return {split: (names, _hypersim_files(root, names)) for split, names in listed.items()}


def _hypersim_files(root: Path, names: list[str]) -> dict[str, list[str]]:
    """The files of each kind that all frames have; colour is always there."""
    kinds = {
        "rgb": ("final_preview", "tonemap.jpg"),
        "depth": ("geometry_hdf5", "depth_meters.hdf5"),
        "semseg": ("geometry_hdf5", "semantic.hdf5"),
    }
    files: dict[str, list[str]] = {}
    for kind, (folder, suffix) in kinds.items():
        frames = (name.split("/") for name in names)
        paths = [f"{scene}/images/{camera}_{folder}/{frame}.{suffix}" for scene, camera, frame in frames]
        there = [(root / path).is_file() for path in paths]
        if any(there) and not all(there):
            lacking = paths[there.index(False)]
            raise ValueError(f"{there.count(False)} of {len(paths)} frames have no {kind}, e.g. {lacking}: fetch them")
        if any(there):
            files[kind] = paths
    return files


def _partition(root: Path) -> dict[str, str] | None:
    """The split of each frame that is part of the public release."""
    file = root / HYPERSIM_SPLITS
    if not file.is_file():
        return None
    try:
        return {
            f"{r['scene_name']}/scene_{r['camera_name']}/frame.{int(r['frame_id']):04}": r["split_partition_name"]
            for r in csv.DictReader(file.read_text(encoding="utf-8").splitlines())
            if r["included_in_public_release"] == "True"
        }
    except (KeyError, ValueError) as error:
        problem = f"{file} is not the published table of splits ({error}); take it away or fetch it anew"
        raise ValueError(problem) from error


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
