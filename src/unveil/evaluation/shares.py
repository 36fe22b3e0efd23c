"""The shares of features that several processes compute: whole batches each, so the numbers are those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..runs.team import Team


@dataclass
class Share:
    """What a process has computed: rows of the source with their features, what is unreadable, or an error."""

    rows: list[int] = field(default_factory=list)
    values: Tensor | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def send_share(share: Share) -> None:
    """Send rank zero the share of another process."""
    values, share.values = share.values, None if share.values is None else share.values.to("meta")
    dist.gather_object(share, None)
    if values is not None:
        dist.send(values, 0)


def collect(of: Team, own: Share) -> list[Share]:
    """The shares of all processes by rank, on rank zero. Raises ValueError where one has failed."""
    heads: list[Any] = [None] * of.size
    dist.gather_object(None, heads)
    shares: list[Share] = [own, *heads[1:]]
    for rank, share in enumerate(shares[1:], start=1):
        if share.values is not None:  # a shape, whose numbers follow
            share.values = torch.empty(share.values.shape, dtype=share.values.dtype)
            dist.recv(share.values, rank)
    of.is_busy = False
    if failed := [f"rank {rank}: {share.error}" for rank, share in enumerate(shares) if rank and share.error]:
        raise ValueError(failed[0])
    return shares


def in_order(shares: Sequence[Share]) -> Tensor | None:
    """The features of all shares in the order of their rows; None where there are none."""
    if len(shares) == 1:
        return shares[0].values
    there = [(share.rows, share.values) for share in shares if share.values is not None]
    order = torch.tensor([row for rows, _ in there for row in rows]).argsort()
    return torch.cat([values for _, values in there])[order] if there else None
