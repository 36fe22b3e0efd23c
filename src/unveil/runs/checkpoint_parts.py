"""Tensors that several processes write together, each its part, and that any number of them reads again.

They are distributed checkpoints of PyTorch (`torch.distributed.checkpoint`) in its safetensors format, which has no
pickle: one file for each process, whose header says where each part of a tensor begins. A tensor that all processes
hold is written by one of them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from .atomic import sync
from .checkpoint_state import checksum

T = TypeVar("T")


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write this process's parts of tensors into a folder, and wait until they are on the disk; their checksums.

    All processes call it; the folder's parent is there. Raises OSError in all of them where it fails in one.
    """
    import torch.distributed.checkpoint as dcp  # takes long to import
    from torch.distributed.checkpoint.api import CheckpointException

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer)
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise OSError(f"{folder} could not be written by rank {rank}: {reason}") from error
    own = sorted(folder.glob(f"shard-{dist.get_rank() + 1:05d}-*"))
    for file in own:
        sync(file)
    return {f"{folder.name}/{file.name}": checksum(file) for file in own}


def read_parts(folder: Path) -> dict[str, Tensor]:
    """The whole tensors in a folder that several processes wrote, on the CPU, in one process or in any number.

    Raises ValueError for files of which a part is missing, or that are of no such checkpoint.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        described = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Tensor] = {}
        for name, of in described.items():
            assert isinstance(of, TensorStorageMetadata)  # the format has no others
            if sum(prod(chunk.sizes) for chunk in of.chunks) != prod(of.size):
                raise ValueError(f"not all parts of {name} are there")
            tensors[name] = torch.zeros(of.size, dtype=of.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process reads
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, json.JSONDecodeError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} is damaged: {str(error).partition(chr(10))[0]}") from error
    return tensors


def leads() -> bool:
    """Whether this process begins and ends what all write together."""
    return dist.get_rank() == 0


def together(do: Callable[[], T]) -> list[T]:
    """What each process gets by doing something. All call it; raises OSError in all of them where it fails in one."""
    error: OSError | None = None
    mine: tuple[str | None, T | None] = None, None
    try:
        mine = None, do()
    except OSError as failed:
        error, mine = failed, (str(failed), None)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    if error is not None:
        raise error
    if reason := next((reason for reason, _ in every if reason is not None), None):
        raise OSError(reason)
    return [result for _, result in every]
