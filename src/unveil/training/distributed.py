"""Data-parallel training: the processes that `torchrun` starts, each with its share of every batch.

A single process is a group of size 1 without communication, so the loop and the trainer have one code path.
"""

from __future__ import annotations

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

T = TypeVar("T")

# Rank zero alone validates and saves, while the others wait at the next step.
_TIMEOUT = timedelta(hours=2)
_RENDEZVOUS = timedelta(minutes=10)  # processes of one job start within minutes of one another

_LAUNCHER = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_OTHERS = (  # launchers beside torchrun: name, a task per node, the number of nodes, variables of tasks and of the rank
    ("Slurm", "srun --ntasks-per-node=1", "$SLURM_NNODES", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID"),
    ("MPI", "mpirun -npernode 1", "NODES", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
    ("MPI", "mpirun -ppn 1", "NODES", ("PMI_SIZE", "MV2_COMM_WORLD_SIZE"), "PMI_RANK"),
)
_HOW_TO_START = "Unset WORLD_SIZE to train in one process, or start torchrun --nproc-per-node {} -m unveil pretrain ..."


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
        """The model in DistributedDataParallel: gradients are averaged over the processes during the backward pass."""
        return model if self.size == 1 else DistributedDataParallel(model, broadcast_buffers=False)

    def sync_gradients(self, model: Any, now: bool) -> AbstractContextManager[None]:
        """The context of a micro-batch: gradients are averaged with the last one (`now`) alone."""
        return nullcontext() if now or self.size == 1 else model.no_sync()


SINGLE_PROCESS = Group()


@contextmanager
def process_group() -> Iterator[Group]:
    """The group of processes that `torchrun` has started; a group of size 1 without it.

    Raises ValueError for variables of a launcher that do not describe a group, and where not all processes come.
    """
    rank, size = _rank_and_size()
    if size == 1:
        _warn_of_tasks()
        yield SINGLE_PROCESS
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log(f"waiting for {size - 1} other process{'es' * (size > 2)} (WORLD_SIZE={size}) at {address}")
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_RENDEZVOUS))
    except (dist.DistError, RuntimeError, ValueError) as error:
        minutes = _RENDEZVOUS.total_seconds() / 60
        raise ValueError(
            f"the {size} processes of WORLD_SIZE did not meet at {address} within {minutes:g} minutes ({error});"
            f" {_HOW_TO_START.format(size)}"
        ) from error
    store.set_timeout(_TIMEOUT)
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=size)
    try:
        yield Group(rank, size)
    finally:
        dist.destroy_process_group()


def _rank_and_size() -> tuple[int, int]:
    """The rank and world size that a launcher has set, checked."""
    values = {name: os.environ.get(name, "").strip() for name in _LAUNCHER}
    size = values["WORLD_SIZE"] or "1"
    if not size.isdecimal() or size == "0":
        raise ValueError(f"WORLD_SIZE is {size!r}, not a number of processes; {_HOW_TO_START.format('GPUS')}")
    if int(size) == 1:
        return 0, 1
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={size} is set and {', '.join(missing)} not: torchrun has not started this process."
            f" {_HOW_TO_START.format(size)}"
        )
    rank, port = values["RANK"], values["MASTER_PORT"]
    if not rank.isdecimal() or int(rank) >= int(size):
        raise ValueError(f"RANK is {rank!r}, not one of 0 .. {int(size) - 1}; {_HOW_TO_START.format(size)}")
    if not port.isdecimal():
        raise ValueError(f"MASTER_PORT is {port!r}, not a port; {_HOW_TO_START.format(size)}")
    return int(rank), int(size)


def _warn_of_tasks() -> None:
    """Each task that `srun` or `mpirun` starts without torchrun would train the same model again."""
    for launcher, start, nodes, sizes, rank in _OTHERS:
        tasks = next((os.environ[name] for name in sizes if os.environ.get(name)), "1")
        if tasks.isdecimal() and int(tasks) > 1:
            log(
                f"warning: {launcher} has started task {os.environ.get(rank, '0')} of {tasks}, and each trains a model"
                f" of its own. For one model start one task per node, each with torchrun: {start} torchrun"
                f" --nnodes={nodes} --nproc-per-node=GPUS --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m unveil ..."
            )
            return
