"""The formulas by which the parity cases fill weights, images and masks (tests/parity/README.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def formula(key: str, shape: Sequence[int], seed: int) -> Tensor:
    """A fixed wave for each key, in float32."""
    phase = sum(i * ord(c) for i, c in enumerate(key, start=1)) % 9973 + seed
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    wave = torch.sin(0.7390851 * i + 0.5772157 * phase) * torch.cos(0.0131 * i + 0.31 * phase)
    return wave.float().reshape(tuple(shape))


def noise(shape: Sequence[int], seed: int) -> Tensor:
    """A low-discrepancy sequence in [0, 1)."""
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.frac(i * 0.6180339887498949 + 0.137 * seed).float().reshape(tuple(shape))


def weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """A whole state dict; position tables keep their fixed values and are left out."""
    state = {}
    for key, shape in shapes.items():
        if "pos_emb" in key:
            continue
        wave = formula(key, shape, seed)
        if len(shape) == 1:
            state[key] = 1 + 0.1 * wave if key.endswith("weight") else 0.1 * wave
        else:
            state[key] = wave * (2.4 / math.sqrt(math.prod(shape[1:])))
    return state
