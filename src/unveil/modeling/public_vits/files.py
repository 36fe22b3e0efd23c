"""Weight files: safetensors, `.pth` through torch's weights-only loader, TorchScript; no pickle runs code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .torchscript import is_script, read_script

StateDict = dict[str, Tensor]


def read_weights(path: str | Path) -> StateDict:
    """The tensors of a weight file, under the names that the file gives them; of a script, those of its state dict.

    Raises FileNotFoundError when there is no such file, ValueError for a file that holds no weights, or a pickle with
    code in it, which is refused and not run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file at {path}; give a .safetensors or .pth file, or a run folder")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own bare exception type
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    content = read_script(path) if is_script(path) else _load(path)
    for wrapper in ("model", "state_dict", "module", "teacher"):  # the last is DINO's
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise ValueError(f"{path} holds no weights: a state dict was expected, or a dict with one under 'model'")
    return state


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file trips the reader in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} was refused: it is damaged or holds more than tensors ({reason})") from error
