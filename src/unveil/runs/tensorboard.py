"""The metrics as TensorBoard's event files, an optional extra."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


def check_tensorboard() -> None:
    """Raise ValueError when TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs a package that is not here: pip install 'unveil[tensorboard]'")


class TensorBoardWriter:
    """Writes every line of metrics as scalars; purges what an earlier process wrote beyond `step`."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / FOLDER), purge_step=step + 1)

    def add(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line, under its kind."""
        for name, value in line.items():
            parts = value if isinstance(value, Mapping) else {"": value}
            for key, number in parts.items():
                if name not in ("kind", "step") and isinstance(number, (int, float)):
                    self.writer.add_scalar("/".join(filter(None, (line["kind"], name, key))), number, line["step"])
        self.writer.flush()

    def close(self) -> None:
        """Write what is left, and end."""
        self.writer.close()
