"""Tensors of which each process holds a part (torch's `DTensor`, of FSDP2), and plain ones alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: its shard, or all of it."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole_tensor(part: Tensor, like: Any) -> Tensor:
    """A tensor, from this process's part of it, that is sharded like another one. All processes call it."""
    if not hasattr(like, "placements"):
        return part
    from torch.distributed.tensor import DTensor  # takes long to import

    of = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return of.full_tensor()


def sharded_like(whole: Tensor, like: Any) -> Tensor:
    """A tensor that all processes hold, sharded like another one; no process sends anything."""
    if not hasattr(like, "placements"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor. All processes call it."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
