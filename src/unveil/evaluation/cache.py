"""What an interrupted evaluation has measured: the same command does not measure it again."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runs.atomic import write_json

Key = Mapping[str, object]


class ResultCache:
    """A folder of scores, and of checkpoints of trainings on the way to one, each under all that it depends on.

    Without a folder nothing is cached.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.used: set[Path] = set()
        self._checksums: dict[int, tuple[object, int]] = {}

    def get(self, key: Key) -> dict[str, Any] | None:
        """The content that was stored under this key."""
        path = self._path(key, "json")
        if path is None or not path.exists():
            return None
        self.used.add(path)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def put(self, key: Key, content: Mapping[str, object]) -> None:
        """Store a score atomically. The checkpoints of the trainings that led to it are removed."""
        path = self._path(key, "json")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
            for checkpoint in [used for used in self.used if used.suffix == ".safetensors"]:
                checkpoint.unlink(missing_ok=True)
            self.used.add(path)

    def checkpoint(self, key: Key) -> Path | None:
        """The file for the checkpoint of a training that depends on this key."""
        path = self._path(key, "safetensors")
        if path is not None:
            self.used.add(path)
        return path

    def checksum(self, encoder: object) -> int:
        """A checksum of an encoder's weights, computed once; 0 where nothing is cached, and for raw pixels."""
        if self.folder is None or not isinstance(encoder, nn.Module):
            return 0
        if id(encoder) not in self._checksums:
            total = 0
            for tensor in encoder.state_dict().values():
                total = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), total)
            self._checksums[id(encoder)] = encoder, total
        return self._checksums[id(encoder)][1]

    @property
    def is_empty(self) -> bool:
        """Whether a repeated evaluation would start from the beginning."""
        return not any(path.exists() for path in self.used)

    def clear(self) -> None:
        """Remove what this evaluation has stored or read: its results are written."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, key: Key, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps(key, sort_keys=True, default=list)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.{suffix}"
