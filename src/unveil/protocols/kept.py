"""Scores of an evaluation that is not over: when it is stopped, the same command need not measure them again."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from .features import FeatureEncoder
from .protocol import Score
from .results import write_json
from .task import Sets


class Kept:
    """A folder of scores, each under everything that it depends on; without a folder nothing is kept."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.used: set[Path] = set()

    def find(self, key: Mapping[str, object]) -> Score | None:
        """The score that was kept under this key."""
        path = self._path(key)
        if path is None or not path.exists():
            return None
        self.used.add(path)
        return Score(**json.loads(path.read_text(encoding="utf-8")))

    def keep(self, key: Mapping[str, object], score: Score) -> None:
        """Write a score, whole or not at all."""
        path = self._path(key)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(score))
            self.used.add(path)

    def clear(self) -> None:
        """Remove what this evaluation has kept or found: its results are written."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, key: Mapping[str, object]) -> Path | None:
        text = json.dumps(key, sort_keys=True, default=list)
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        return None if self.folder is None else self.folder / f"{name}.json"


def fingerprint(encoder: FeatureEncoder, sets: Sets) -> dict[str, object]:
    """What tells one encoder and one task from others: checksums of the weights, the images' numbers and the labels."""
    weights = 0
    if isinstance(encoder, nn.Module):
        for tensor in encoder.state_dict().values():
            weights = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), weights)
    images = [
        [part.source.address, zlib.crc32(str((part.indices, part.numbers)).encode())]
        for part in (sets.train, sets.test)
    ]
    return {"weights": weights, "image_size": encoder.image_size, "images": images}
