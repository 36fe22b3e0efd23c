"""Data-parallel training: the processes that `torchrun` starts, each with its share of every batch.

A single process is a group of size 1 without communication, so the loop and the trainer have one code path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..runs.console import RankZeroFailed

# Rank zero alone validates and saves, while the others wait at the next step.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Group:
    """The rank of this process and the world size.

    Collective methods must be called by all processes in the same order. On a GPU, tensors are summed by NCCL in the
    stream without waiting; flags and paths, which decide what the program does, are exchanged on the CPU by gloo.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and messages for all."""
        return self.rank == 0

    def all_reduce(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of one element, each summed over the processes."""
        if self.size == 1 or not tensors:
            return dict(tensors)
        summed = torch.stack([tensor.detach().double() for tensor in tensors.values()])
        dist.all_reduce(summed)
        return {name: value.to(tensors[name].dtype) for name, value in zip(tensors, summed, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def gather(self, entries: Mapping[str, str]) -> dict[str, str]:
        """The union of the processes' mappings."""
        if self.size == 1:
            return dict(entries)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(entries))
        return {name: text for one in gathered for name, text in one.items()}

    def broadcast(self, compute: Callable[[], str]) -> str:
        """The result of `compute` on rank zero, sent to the others, which raise RankZeroFailed where it raises."""
        if self.size == 1:
            return compute()
        value: list[str | None] = [None]
        try:
            value = [compute()]
        finally:
            dist.broadcast_object_list(value)
        assert value[0] is not None
        return value[0]

    def receive(self) -> str:
        value: list[str | None] = [None]
        dist.broadcast_object_list(value)
        if value[0] is None:
            raise RankZeroFailed
        return value[0]

    def wrap(self, model: Any) -> Any:
        """The model in DistributedDataParallel: gradients are averaged over the processes during the backward pass."""
        return model if self.size == 1 else DistributedDataParallel(model, broadcast_buffers=False)

    def sync_gradients(self, model: Any, now: bool) -> AbstractContextManager[None]:
        """The context of a micro-batch: gradients are averaged with the last one (`now`) alone."""
        return nullcontext() if now or self.size == 1 else model.no_sync()


SINGLE_PROCESS = Group()


@contextmanager
def process_group() -> Iterator[Group]:
    """The group of processes that `torchrun` has started; a group of size 1 without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
