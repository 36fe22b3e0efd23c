"""How the processes of a group meet: afresh after each start, whatever an earlier start has left in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

ATTEMPTS = 3  # to connect all processes
CONNECT = timedelta(minutes=1)  # of an attempt: who has come connects within seconds
_POLL = 0.05  # seconds

_Store = dist.Store


class NotMet(ValueError):  # noqa: N818, as `RankZeroFailed`
    """Not all processes of a group have come, or they cannot be connected."""


def connect(backend: str, store: _Store, rank: int, size: int, patience: timedelta, timeout: timedelta) -> _Store:
    """Start the default process group; returns the part of the store that is for these processes alone.

    They wait for one another for `patience`; the collectives of the group end after `timeout`. After `torchrun` has
    started processes again, the store still holds what those before them have written, and one that reads it would wait
    for a process that is gone. So they agree on a name that no other start has, and connect under it; where that takes
    more than a minute, they try again. Raises NotMet.
    """
    reason: Exception | None = None
    for _ in range(ATTEMPTS):
        own = dist.PrefixStore(f"unveil/{_meet(store, rank, size, patience)}", store)
        try:
            dist.init_process_group(backend, timeout=CONNECT, store=own, rank=rank, world_size=size)
            dist.barrier()
            own.set(f"connected/{rank}", "1")
            own.wait([f"connected/{other}" for other in range(size)], CONNECT)
        except (RuntimeError, ValueError) as error:
            reason = error
            with suppress(Exception):  # what is half made is of no use, whatever it says
                dist.destroy_process_group()
            continue
        dist.distributed_c10d._set_pg_timeout(timeout)
        return own
    raise NotMet(f"{size} processes have met and cannot be connected, in {ATTEMPTS} attempts ({_first_line(reason)})")


def _meet(store: _Store, rank: int, size: int, patience: timedelta) -> str:
    """A name that these processes alone have: rank zero lists who has come, and each that finds itself there agrees."""
    me, agreed = uuid4().hex, ""
    hellos = [f"unveil/hello/{other}" for other in range(size)]
    store.set(hellos[rank], me)
    with _refused(size, patience) as deadline:
        while time.monotonic() < deadline:
            if rank == 0 and store.check(hellos):
                there = [hello.decode() for hello in store.multi_get(hellos)]
                if there != _listed(store)[1] or not agreed:
                    agreed = uuid4().hex
                    store.set("unveil/list", json.dumps([agreed, there]))
                store.set(f"unveil/{agreed}/agrees/0", "1")
                if store.check([f"unveil/{agreed}/agrees/{other}" for other in range(size)]):
                    store.set(f"unveil/{agreed}/go", "1")
                    return agreed
            elif rank > 0:
                name, there = _listed(store)
                if me in there[rank : rank + 1]:
                    store.set(f"unveil/{name}/agrees/{rank}", "1")
                    if store.check([f"unveil/{name}/go"]):
                        return name
            time.sleep(_POLL)
    raise NotMet(f"not all of {size} processes have come within {patience.total_seconds() / 60:g} minutes")


def _listed(store: _Store) -> tuple[str, list[str]]:
    if not store.check(["unveil/list"]):
        return "", []
    name, there = json.loads(store.get("unveil/list"))
    return name, there


@contextmanager
def _refused(size: int, patience: timedelta) -> Iterator[float]:
    """The time until which to wait, by the monotonic clock; errors of the store as NotMet."""
    try:
        yield time.monotonic() + patience.total_seconds()
    except RuntimeError as error:
        raise NotMet(f"the {size} processes have lost the store where they meet ({_first_line(error)})") from error


def _first_line(error: Exception | None) -> str:
    return str(error).partition("\n")[0]
