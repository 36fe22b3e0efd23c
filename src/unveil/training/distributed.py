"""Data-parallel training: the processes that `torchrun` or `srun` starts, each with its share of every batch.

A single process is a group of size 1 without communication, so the loop and the trainer have one code path.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..runs.console import RankZeroFailed, log
from ..runs.launcher import HOW_TO_START, place, unheeded_tasks
from .rendezvous import connect
from .watch import Watch

T = TypeVar("T")

# Rank zero alone validates and saves, while the others wait at the next step.
_TIMEOUT = timedelta(hours=2)
_RENDEZVOUS = timedelta(minutes=10)  # processes of one job start within minutes of one another


@dataclass(frozen=True)
class Group:
    """The rank of this process and the world size.

    Collective methods must be called by all processes in the same order. On a GPU, tensors are summed by NCCL in the
    stream without waiting; flags and paths, which decide what the program does, are exchanged on the CPU by gloo.
    """

    rank: int = 0
    size: int = 1
    watch: Watch | None = None

    def tick(self, phase: str) -> None:
        """The main thread has made progress, and is at this from now on."""
        if self.watch is not None:
            self.watch.tick(phase)

    @property
    def is_ending(self) -> bool:
        """Whether the cause of a broken communication is being looked for, after which this process ends."""
        return self.watch is not None and self.watch.is_explaining

    def explained(self) -> AbstractContextManager[None]:
        """A context in which an error of the communication is RankLost, which names the process that is gone."""
        return nullcontext() if self.watch is None else self.watch.explained()

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

    def highest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process."""
        return bool(self.highest(int(flag)))

    def agree(self, number: int) -> int:
        """The number that rank zero has."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.broadcast(numbers, 0)
        return int(numbers)

    def gather(self, entries: Mapping[str, str]) -> dict[str, str]:
        """The union of the processes' mappings."""
        if self.size == 1:
            return dict(entries)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(entries))
        return {name: text for one in gathered for name, text in one.items()}

    def broadcast(self, compute: Callable[[], T], message: Callable[[T], Any]) -> T:
        """The result of `compute` on rank zero, whose message the others `receive`."""
        value: list[Any] = [None]
        try:
            result = compute()
            value = [message(result)]
        finally:
            if self.size > 1:
                dist.broadcast_object_list(value)
        return result

    def receive(self) -> Any:
        """The message of rank zero, any Python object. Raises RankZeroFailed where it has failed instead."""
        value: list[Any] = [None]
        dist.broadcast_object_list(value)
        if value[0] is None:
            raise RankZeroFailed
        return value[0]

    def wrap(self, model: Any) -> Any:
        """The model in DistributedDataParallel: gradients are averaged over the processes during the backward pass.

        They are views of the buffers that are sent, which saves a copy and the memory of it. Buffers are the same in
        all processes by what the model does.
        """
        if self.size == 1:
            return model
        known = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 has renamed it
        options: dict[str, Any] = {next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known): False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)

    def sync_gradients(self, model: Any, now: bool) -> AbstractContextManager[None]:
        """The context of a micro-batch: gradients are averaged with the last one (`now`) alone."""
        if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
            model.set_requires_gradient_sync(now)
            return nullcontext()
        return nullcontext() if now or self.size == 1 else model.no_sync()


SINGLE_PROCESS = Group()


@contextmanager
def process_group(hang_minutes: float = 0.0, patience: timedelta = _TIMEOUT) -> Iterator[Group]:
    """The group of processes that `torchrun`, `srun` or `mpirun` has started; a group of size 1 without one.

    Raises ValueError for variables of a launcher that do not describe a group, and where not all processes come;
    RankLost where one of them ends, or makes no progress for `hang_minutes` (0: it is waited for, with `patience`).
    """
    here = place()
    if here.size == 1:
        if tasks := unheeded_tasks():
            log(f"warning: {tasks}, and each trains a model of its own; give torchrun --nnodes and --rdzv-endpoint")
        yield SINGLE_PROCESS
        return
    os.environ.update(here.variables)  # as torch reads it
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # the last collectives, written down where one hangs
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    size, address = here.size, f"{here.host}:{here.port}"
    log(f"waiting for {size - 1} other process{'es' * (size > 2)} (WORLD_SIZE={size}) at {address}")
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_RENDEZVOUS))
        timeout = timedelta(minutes=hang_minutes + 10) if hang_minutes else patience
        own: Any = connect(backend, store, rank, size, _RENDEZVOUS, timeout)
    except (RuntimeError, ValueError) as error:
        minutes, reason = _RENDEZVOUS.total_seconds() / 60, str(error).partition("\n")[0]
        raise ValueError(
            f"the {size} processes of WORLD_SIZE did not meet at {address} within {minutes:g} minutes ({reason});"
            f" {HOW_TO_START.format(size)}"
        ) from error
    watch = Watch(own.clone(), rank, size, 60 * hang_minutes)
    with watch.running(), watch.explained():
        yield Group(rank, size, watch)
        dist.destroy_process_group()
