"""What an evaluation that is not over has done: when it is stopped, the same command need not do it again."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..runs.atomic import write_json
from .types import Score

Key = Mapping[str, object]


class Kept:
    """A folder of scores, and of trainings on the way to one, each under everything that it depends on; without a
    folder nothing is kept."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.used: set[Path] = set()

    def find(self, key: Key) -> Score | None:
        """The score that was kept under this key."""
        path = self._path(key, "json")
        if path is None or not path.exists():
            return None
        self.used.add(path)
        return Score(**json.loads(path.read_text(encoding="utf-8")))

    def keep(self, key: Key, score: Score) -> None:
        """Write a score, whole or not at all. The trainings that led to it are removed."""
        path = self._path(key, "json")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(score))
            for training in [used for used in self.used if used.suffix == ".safetensors"]:
                training.unlink(missing_ok=True)
            self.used.add(path)

    def training(self, key: Key) -> Path | None:
        """The file of a training that depends on this key."""
        path = self._path(key, "safetensors")
        if path is not None:
            self.used.add(path)
        return path

    @property
    def is_empty(self) -> bool:
        """Whether a stopped evaluation would begin anew."""
        return not any(path.exists() for path in self.used)

    def clear(self) -> None:
        """Remove what this evaluation has kept or found: its results are written."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, key: Key, kind: str) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps(key, sort_keys=True, default=list)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.{kind}"


def checksum(encoder: object) -> int:
    """What tells one encoder's weights from others."""
    found = 0
    if isinstance(encoder, nn.Module):
        for tensor in encoder.state_dict().values():
            found = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), found)
    return found
