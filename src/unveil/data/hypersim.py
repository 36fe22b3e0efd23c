"""Hypersim as it is published: a folder for each scene, an HDF5 file for each map of a frame."""

from __future__ import annotations

import csv
from pathlib import Path

SPLIT_FILE = "metadata_images_split_scene_v1.csv"


def frames(root: Path) -> dict[str, tuple[list[str], dict[str, list[str]]]]:
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
        raise ValueError(f"{root / SPLIT_FILE} puts none of the {len(pictures)} frames of {root} into train")
    return {split: (names, _files(root, names)) for split, names in listed.items()}


def _files(root: Path, names: list[str]) -> dict[str, list[str]]:
    """The files of each kind that all frames have; colour is always there."""
    kinds = {
        "rgb": ("final_preview", "tonemap.jpg"),
        "depth": ("geometry_hdf5", "depth_meters.hdf5"),
        "semseg": ("geometry_hdf5", "semantic.hdf5"),
    }
    files: dict[str, list[str]] = {}
    for kind, (folder, suffix) in kinds.items():
        paths = []
        for name in names:
            scene, camera, frame = name.split("/")
            paths.append(f"{scene}/images/{camera}_{folder}/{frame}.{suffix}")
        there = [(root / path).is_file() for path in paths]
        if any(there) and not all(there):
            lacking = paths[there.index(False)]
            raise ValueError(f"{there.count(False)} of {len(paths)} frames have no {kind}, e.g. {lacking}: fetch them")
        if any(there):
            files[kind] = paths
    return files


def _partition(root: Path) -> dict[str, str] | None:
    """The split of each frame that is part of the public release."""
    file = root / SPLIT_FILE
    if not file.is_file():
        return None
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    try:
        return {
            f"{r['scene_name']}/scene_{r['camera_name']}/frame.{int(r['frame_id']):04}": r["split_partition_name"]
            for r in rows
            if r["included_in_public_release"] == "True"
        }
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{file} is not the published table of splits ({error}); take it away or fetch it anew"
        ) from error
