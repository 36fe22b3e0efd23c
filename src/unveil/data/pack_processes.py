"""Samples that several processes read, resize and encode, for the one that writes the shards of a pack.

Blocks of samples go round the processes, which work ahead; rank zero asks for them in their order. So where shards end
does not depend on the number of processes, nor does any byte.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from ..runs.hardware import num_cores
from ..runs.team import Team, team
from .decode import Unreadable
from .pack_members import Encoding, PackedSample, packed
from .prefetch import prefetch
from .sources import Source

_BLOCK = 32  # samples


@dataclass(frozen=True)
class Packing:
    """The samples of a source to encode, in this order, by so many threads of each process."""

    encoding: Encoding
    indices: Sequence[int]
    workers: int | None

    def samples(self, source: Source) -> Generator[PackedSample | str]:
        """All of them, or why one cannot be read; by all processes where this one leads several."""
        crew = team()
        if crew is None or len(self.indices) <= _BLOCK or not crew.send(self, source):
            yield from self._own(source, 0, 1)
            return
        blocks = range(-(-len(self.indices) // _BLOCK))
        rests = {rank: len(blocks[rank :: crew.size]) for rank in range(1, crew.size)}  # blocks that they wait to send
        with closing(self._own(source, 0, crew.size)) as own:
            try:
                for block in blocks:
                    rank = block % crew.size
                    if rank == 0:
                        yield from islice(own, _BLOCK)
                    else:
                        yield from _ask(rank, rests)
            finally:
                _end(crew, rests)

    def serve(self, source: Source) -> None:
        """Send rank zero the blocks of this process as it asks for them."""
        rank, size = dist.get_rank(), dist.get_world_size()
        with closing(self._own(source, rank, size)) as own:
            for _ in range(-(-len(self.indices) // _BLOCK))[rank::size]:
                is_wanted = torch.zeros(1, dtype=torch.int64)
                dist.recv(is_wanted, 0)
                if not is_wanted:
                    return
                try:
                    block: Any = list(islice(own, _BLOCK))
                except (ValueError, OSError) as error:
                    block = str(error)
                dist.send_object_list([block], 0)
                if isinstance(block, str):
                    return

    def _own(self, source: Source, rank: int, size: int) -> Generator[PackedSample | str]:
        """The samples of every so many blocks."""

        def read(index: int) -> PackedSample | str:
            try:
                return packed(source, index, self.encoding)
            except Unreadable as error:
                return error.reason

        threads = self.workers or num_cores()
        starts = range(rank * _BLOCK, len(self.indices), size * _BLOCK)
        jobs = (partial(read, i) for start in starts for i in self.indices[start : start + _BLOCK])
        with closing(prefetch(jobs, 8 * threads, threads)) as results:
            yield from results


def _ask(rank: int, rests: dict[int, int]) -> list[PackedSample | str]:
    dist.send(torch.ones(1, dtype=torch.int64), rank)
    message: list[Any] = [None]
    dist.recv_object_list(message, rank)
    rests[rank] -= 1
    if isinstance(message[0], str):
        rests[rank] = 0  # it has ended
        raise ValueError(f"rank {rank}: {message[0]}")
    return list(message[0])


def _end(crew: Team, rests: dict[int, int]) -> None:
    """Let the others go on to the next job, or end."""
    for rank in [rank for rank, count in rests.items() if count]:
        dist.send(torch.zeros(1, dtype=torch.int64), rank)
    crew.is_busy = False
