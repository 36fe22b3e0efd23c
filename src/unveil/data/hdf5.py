"""Maps in HDF5 files: Hypersim, which has one array a file, and NYUv2, whose labelled set is one file of arrays."""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path

import numpy as np

from .decode import Unreadable, optional

NYUV2, SPLITS, CLASSES = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
HYPERSIM_SPLITS = "metadata_images_split_scene_v1.csv"
_ARRAYS = {"rgb": "images", "depth": "depths", "semseg": "labels"}
_NEEDED = "is read with h5py and scipy: pip install 'unveil[hdf5]'"


def as_npy(root: Path, path: str) -> bytes:
    """A map as a `.npy` file would hold it. `path` is a file below `root`, or NYUv2's with `#` array `/` number.

    Raises `Unreadable` for a damaged file, ValueError where a reader is not installed.
    """
    file, _, entry = path.partition("#")
    h5py = optional("h5py", f"{file} {_NEEDED}")
    try:
        with h5py.File(root / file, "r") as stored:
            if not entry:
                array = np.asarray(stored["dataset"])
            else:
                name, number = entry.split("/")
                array = np.asarray(stored[name][int(number)]).swapaxes(-1, -2)  # MATLAB counts columns first
                array = _forty(root)[array] if name == "labels" else array
    except (OSError, KeyError) as error:
        raise Unreadable(path, f"the HDF5 file is damaged, or lacks an array ({error})") from error
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def nyuv2_frames(root: Path) -> dict[str, tuple[list[str], dict[str, list[str]]]]:
    """The frames of the published splits: pictures, depth in metres, and the 40 classes (0 is none).

    Raises FileNotFoundError where one of the three published files is not there.
    """
    for name in (NYUV2, SPLITS, CLASSES):
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root} has no {name}: NYUv2 is {NYUV2} with {SPLITS} and {CLASSES} beside it")
    splits = _loaded(root / SPLITS)
    frames = {}
    for split, key in (("train", "trainNdxs"), ("test", "testNdxs")):
        numbers = [int(n) - 1 for n in splits[key].flatten()]  # MATLAB counts from 1
        paths = {kind: [f"{NYUV2}#{array}/{n}" for n in numbers] for kind, array in _ARRAYS.items()}
        frames[split] = [f"{n + 1:04}" for n in numbers], paths
    return frames


@cache
def _forty(root: Path) -> np.ndarray:
    """The class of 40 for each of the 894 stored ones, 0 for none."""
    return np.concatenate([[0], _loaded(root / CLASSES)["mapClass"].flatten()]).astype(np.uint8)


def _loaded(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = optional("scipy.io", f"{path} {_NEEDED}").loadmat(path)
    return arrays


def hypersim_frames(root: Path) -> dict[str, tuple[list[str], dict[str, list[str]]]]:
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
        raise ValueError(
            f"{root} holds no frames of Hypersim: ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg is needed"
        )
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
