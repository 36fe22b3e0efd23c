"""What lies in a folder: files of some kinds, what else there is, and the classes that sub-folders name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from ..runs.console import suggest, user_path

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def list_files(root: Path, extensions: Collection[str]) -> tuple[list[str], Counter[str]]:
    """The files below a folder with one of these extensions, sorted, and what else is there by extension.

    Hidden names are passed over. Links to folders are followed, each real folder once, so a circle of links ends.
    """
    files, others, visited = [], Counter[str](), set()

    def refused(error: OSError) -> None:
        raise PermissionError(f"cannot list {error.filename!r}: {error.strerror}. Make it readable or leave it out")

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refused):
        if (real := os.path.realpath(folder)) in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            extension = os.path.splitext(name)[1].lower()
            if extension in extensions:
                files.append(os.path.relpath(os.path.join(folder, name), root))
            else:
                others[extension or "without extension"] += 1
    return sorted(path.replace(os.sep, "/") for path in files), others


def folder_labels(files: Collection[str]) -> tuple[list[int] | None, list[str] | None]:
    """The class of each file and the classes' names, where every file lies in one of several sub-folders."""
    if any("/" not in path for path in files):
        return None, None
    tops = [path.split("/", 1)[0] for path in files]
    classes = sorted(set(tops))
    if len(classes) < 2 or {name.lower() for name in classes} <= SPLITS:
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return [number[top] for top in tops], classes


def none_found(others: Counter[str], accepted: Iterable[str], otherwise: str = "nothing") -> str:
    """The words for a folder without files of the `accepted` kinds: what else is there, and what counts."""
    held = ", ".join(f"{n} {kind}" for kind, n in others.most_common(5)) or otherwise
    return f"found {held}. What counts: {' '.join(accepted)}"


def existing_folder(address: str, needed: str) -> Path:
    """The folder at an address; FileNotFoundError where nothing is there, ValueError for a file."""
    root = user_path(address)
    if not root.exists():
        raise FileNotFoundError(missing(root, needed))
    if not root.is_dir():
        raise ValueError(f"{address!r} is a file. {needed}")
    return root


def missing(path: Path, needed: str) -> str:
    """The words for a path that is not there: what is near, and what is needed."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    wanted = path.absolute().relative_to(parent).parts[0]
    names = sorted(os.listdir(parent)) if os.access(parent, os.R_OK) else []
    hint = suggest(wanted, names, f"{parent} exists.", lambda name: str(parent / name))
    return f"no data at {str(path)!r}: {hint} {needed}"
