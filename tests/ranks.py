"""Losses of cases in one of several processes of gloo: `ranks.py FILE RANK SIZE UPDATES MODES CASES`, lists in JSON.

Rank zero prints a list of losses for each case and each mode: ddp, shard, or these with `+checkpoint`, `+micro`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from step_cases import CASES, losses, settings_on
from unveil.training.distributed import Group
from unveil.training.trainer import Settings


def settings(mode: str) -> Settings:
    kind, *more = mode.split("+")
    micro = 1 if "micro" in more else 8
    on = settings_on("cpu")
    return replace(on, shard=kind == "shard", micro_batch=micro, checkpoint_activations="checkpoint" in more)


def main(file: str, rank: int, size: int, updates: int, modes: list[str], names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.cpu.get_capabilities = dict  # float32 in teachers too, as in the other tests
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(file, size), rank=rank, world_size=size)
    for name in names:
        for mode in modes:
            try:
                found = losses(CASES[name], settings(mode), updates, group=Group(rank, size)).tolist()
            except (RuntimeError, ValueError, AssertionError) as error:
                found = f"{type(error).__name__}: {error}"
            if rank == 0:
                print(json.dumps([name, mode, found]), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    path, rank, size, updates, modes, names = sys.argv[1:]
    main(path, int(rank), int(size), int(updates), json.loads(modes), json.loads(names))
