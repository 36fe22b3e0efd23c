"""The images in a folder, one in each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt64

from ..runs.console import user_path
from .file_ends import Ends, stamps
from .file_names import Names
from .regular_files import read_bytes
from .source_bases import EncodedImages


@dataclass(frozen=True)
class FolderSource(EncodedImages):
    """The images in a folder and its sub-folders, in the order of their paths; `name` is the path in the folder.

    When every image lies in a sub-folder and there are at least two, their names are the classes, unless they are
    those of splits (train, val, test). `passed_over` counts by kind what else lies there.
    """

    address: str
    root: Path
    names: Names = field(repr=False)
    channels: int
    labels: Sequence[int] | None = field(repr=False)
    classes: list[str] | None = field(repr=False)
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    @cached_property
    def _resolved(self) -> Path:
        return self.root.resolve()

    def location(self, index: int) -> str:
        return f"{self._resolved}/{self.names[index]}"

    def encoded(self, index: int) -> bytes:
        name = self.names[index]
        return read_bytes(self.root / name, name)

    def ends(self, index: int) -> Ends:
        name = self.names[index]
        return Ends.of_file(self.root / name, name)

    @property
    def place(self) -> str:
        """Where what is known of the files is cached."""
        is_all = user_path(self.address).is_dir()  # or a pattern
        return str(self._resolved) if is_all else f"{self._resolved}:{self.address}"

    def stamps(self, indices: Int[np.ndarray, " K"]) -> UInt64[np.ndarray, " K"]:
        """A number for each file that changes with its name, size and times of change; 0 if it may change yet."""
        names = self.names if len(indices) == len(self) else self.names.take(indices)
        return stamps(self.root, names, names.hashes())
