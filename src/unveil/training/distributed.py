"""Several processes that train one model, each on its share of every batch, as `torchrun` starts them.

A process alone is a group of one, which asks nobody anything: the loop and the trainer have no other case.
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

# The first process alone looks at held-out images and saves, while the others wait at the next step.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which of them this one is.

    The methods that ask others have to be called by all of them in the same order. On a GPU, tensors are added up by
    NCCL in the stream and nothing waits; what a program decides by, a flag or a path, goes over the processor.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes, and speaks to the user, for all."""
        return self.rank == 0

    def all_reduce(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Numbers, each added up over the processes."""
        if self.size == 1 or not tensors:
            return dict(tensors)
        summed = torch.stack([tensor.detach().double() for tensor in tensors.values()])
        dist.all_reduce(summed)
        return {name: value.to(tensors[name].dtype) for name, value in zip(tensors, summed, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether it holds in one of the processes at least."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def gather(self, found: Mapping[str, str]) -> dict[str, str]:
        """What each process has found, put together."""
        if self.size == 1:
            return dict(found)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, dict(found))
        return {name: value for part in parts for name, value in part.items()}

    def broadcast(self, find: Callable[[], str]) -> str:
        """What this process, the first, finds out; the others hear it. Where it fails, they raise RankZeroFailed."""
        if self.size == 1:
            return find()
        answer: list[str | None] = [None]
        try:
            answer = [find()]
        finally:
            dist.broadcast_object_list(answer)
        assert answer[0] is not None
        return answer[0]

    def receive(self) -> str:
        answer: list[str | None] = [None]
        dist.broadcast_object_list(answer)
        if answer[0] is None:
            raise RankZeroFailed
        return answer[0]

    def wrap(self, model: Any) -> Any:
        """A model whose gradients are the mean over the processes, exchanged while the backward pass goes on."""
        return model if self.size == 1 else DistributedDataParallel(model, broadcast_buffers=False)

    def sync_gradients(self, model: Any, now: bool) -> AbstractContextManager[None]:
        """The forward and backward pass of a part of a batch; gradients are exchanged with the last part alone."""
        return nullcontext() if now or self.size == 1 else model.no_sync()


SINGLE_PROCESS = Group()


@contextmanager
def process_group() -> Iterator[Group]:
    """The group that `torchrun` has put this process in; by itself, a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
