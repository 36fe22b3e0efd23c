"""Trainings of protocols in several processes: each computes a part of every batch, and gradients are added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """Which process this is and how many there are; (0, 1) where it is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shares(batch: int, most: int) -> int:
    """The size of a micro-batch of at most `most` samples with which every process has a part of a batch."""
    return max(1, min(most, -(-batch // rank_and_size()[1])))


def mine(parts: Sequence[T]) -> Sequence[T]:
    """Those of some parts that this process computes: every n-th of n processes."""
    rank, size = rank_and_size()
    return parts[rank::size]


def add_up(parameters: Iterable[Tensor], total: Tensor | None) -> Tensor | None:
    """Add up the gradients of all processes, in place, and the sum of their losses, which is returned."""
    if rank_and_size()[1] == 1:
        return total
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in trained if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    total = flat.new_zeros(()) if total is None else total.to(flat.dtype)
    dist.all_reduce(total)
    return total


def gathered(entries: Mapping[Any, T]) -> dict[Any, T]:
    """The union of the processes' entries, in the order of their keys where there are several processes."""
    size = rank_and_size()[1]
    if size == 1:
        return dict(entries)
    every: list[Any] = [None] * size
    dist.all_gather_object(every, dict(entries))
    return dict(sorted((key, value) for one in every for key, value in one.items()))
