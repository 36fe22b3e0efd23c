"""Maps in HDF5 files: one array a file as Hypersim has them, or one entry of the arrays of NYUv2's labelled set."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np

from .decode import Unreadable

NYUV2, SPLITS, CLASSES = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
_ARRAYS = {"rgb": "images", "depth": "depths", "semseg": "labels"}
_NEEDED = "is read with h5py and scipy: pip install 'unveil[hdf5]'"


def as_npy(root: Path, path: str) -> bytes:
    """A map as a `.npy` file would hold it. `path` is a file below `root`, or NYUv2's with `#` array `/` number.

    Raises `Unreadable` for a damaged file, ValueError where a reader is not installed.
    """
    file, _, entry = path.partition("#")
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{file} {_NEEDED}") from error
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
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(f"{path} {_NEEDED}") from error
    arrays: dict[str, np.ndarray] = loadmat(path)
    return arrays
