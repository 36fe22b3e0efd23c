"""Numbers as tensors on a device, moved there once: a copy from the host makes the host wait for all work before it."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def constant(values: tuple[float, ...], like: Tensor) -> Float[Tensor, " C"]:
    """Numbers in the type and on the device of a tensor; nobody may change them in place."""
    if torch.compiler.is_compiling():
        return like.new_tensor(values)  # a constant of the graph
    return _moved(values, like.dtype, like.device)


@lru_cache(maxsize=256)
def _moved(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # a tensor that evaluation has made serves training too
        return torch.tensor(values, dtype=dtype, device=device)
