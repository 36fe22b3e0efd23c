"""Features of very many images in parts: processes of one machine or several write them, and one file is made of all.

The parts lie in a folder beside the file, under a name that stands for weights, images and how features are read. They
begin at whole batches of one process, so the numbers are the same; the same command goes on from those that are there.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib import format as npy

from ..data.decode import NoneReadable
from ..runs.atomic import make_folder, replacing, write_json
from ..runs.executors import each_once
from ..runs.folder import RunFolder

_MERGE = "merge"

T = TypeVar("T")

Content = dict[str, Any]  # arrays by name: features N x D, names N, weights, labels N where there are any


@dataclass(frozen=True)
class Parts:
    """The parts of a file of features: `size` images each, of `total`, in a folder that stands for what is computed."""

    path: Path
    folder: Path
    total: int
    size: int

    @classmethod
    def of(cls, path: Path, name: str, total: int, size: int) -> Parts:
        """Parts of a file at `path`, which lie beside it in a folder of this name."""
        return cls(path, path.with_name(f"{path.name}.parts") / name, total, size)

    @property
    def names(self) -> list[str]:
        """The names of all parts, in the order of the images."""
        return [f"part-{number:06}" for number in range(-(-self.total // self.size))]

    def rows(self, name: str) -> range:
        """The numbers of the images of a part."""
        start = self.size * int(name.removeprefix("part-"))
        return range(start, min(self.total, start + self.size))

    def finish(self, extract: Callable[[range], Content]) -> None:
        """Write the parts that are missing, beside other processes, and the file of all; those are then removed."""
        make_folder(self.folder)

        def write_part(name: str) -> None:
            try:
                content = extract(self.rows(name))
            except NoneReadable:  # others may be
                content = {"features": np.zeros((0, 0), np.float32), "names": np.zeros(0, "U1")}
            write_features(self._file(name), content)

        def is_written(name: str) -> bool:
            return self._file(name).exists() or self.is_merged

        each_once(self.names, self.folder / "locks", is_written, write_part)
        each_once([_MERGE], self.folder / "locks", lambda _: self.is_merged, lambda _: self._merge())

    @property
    def is_merged(self) -> bool:
        """Whether the file is there, as it was made of these parts."""
        return self.path.exists() and RunFolder(self.folder).read("merged.json", {}) == _stamp(self.path)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _merge(self) -> None:
        files = [self._file(name) for name in self.names]
        merge(files, self.path)
        write_json(self.folder / "merged.json", _stamp(self.path))
        for file in files:  # once it is known that they are in the file
            file.unlink(missing_ok=True)
        for other in self.folder.parent.iterdir():  # of weights or images that were others
            if other != self.folder and RunFolder(other).read("merged.json", {}):
                shutil.rmtree(other, ignore_errors=True)


def write_features(path: Path, content: Mapping[str, Any]) -> None:
    """Write features as a whole or not at all."""
    make_folder(path.parent)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)


def merge(files: Sequence[Path], path: Path) -> None:
    """One file of features of several, in their order: the bytes that one process writes, with one part in memory."""
    shapes = [shape_of(file) for file in files]
    shape = (sum(rows for rows, _ in shapes), max(width for _, width in shapes))  # a part without images has none
    if not shape[0]:
        raise NoneReadable(f"none of the images can be read, so {path} is not written")
    with np.load(files[[rows > 0 for rows, _ in shapes].index(True)]) as first:
        content: Content = {"names": _joined(files, "names"), "weights": first["weights"]}
        kind = first["features"].dtype
        if "labels" in first:
            content["labels"] = _joined(files, "labels")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            head = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(member, head)
            for file in files:
                member.write(np.ascontiguousarray(_read(file, "features")).data)
        for name, array in content.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array)


def _joined(files: Sequence[Path], name: str) -> Any:
    return np.concatenate([_read(file, name) for file in files if shape_of(file)[0]])


def _read(file: Path, name: str) -> Any:
    with np.load(file) as content:
        return content[name]


def shape_of(file: Path) -> tuple[int, int]:
    """The number of features in a file, and of the numbers of each."""
    with zipfile.ZipFile(file) as archive, archive.open("features.npy") as member:
        npy.read_magic(member)
        (rows, width), _, _ = npy.read_array_header_1_0(member)
    return rows, width


def in_turn(do: Callable[[], T], path: Path) -> T:
    """Do what processes that write the same file would do twice if they did it at once, such as fit and keep."""
    done: list[T] = []
    each_once(
        ["fit"], path.with_name(f"{path.name}.parts") / "locks", lambda _: bool(done), lambda _: done.append(do())
    )
    return done[0]


def _stamp(path: Path) -> dict[str, int]:
    known = path.stat()
    return {"bytes": known.st_size, "changed": known.st_mtime_ns}
