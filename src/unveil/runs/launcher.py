"""Which of several processes this one is: as `torchrun`, Slurm's `srun` and MPI's `mpirun` say in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TORCHRUN = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_MPI = (  # variables of the rank, of the number of processes and of the rank on its node: Open MPI, MPICH, MVAPICH2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
)
HOW_TO_START = "Unset WORLD_SIZE to train in one process, or start torchrun --nproc-per-node {} -m unveil pretrain ..."
_FIRST_PORT, _PORTS = 20000, 12000  # below those that Linux gives to clients


@dataclass(frozen=True)
class Place:
    """The rank of a process, their number, the rank on its node, and where rank zero waits for the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: str = ""
    port: int = 0
    launcher: str = ""

    @property
    def variables(self) -> dict[str, str]:
        """The same as `torchrun` says it, which torch and the processes that this one starts read."""
        own = {"RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_RANK": self.local_rank}
        return {
            name: str(value) for name, value in (own | {"MASTER_ADDR": self.host, "MASTER_PORT": self.port}).items()
        }


ALONE = Place()


def place(env: Mapping[str, str] = os.environ) -> Place:
    """The place of this process. Raises ValueError for variables that do not describe a group.

    `torchrun` goes first, as it may itself have been started by `srun`, one on each node. A batch script of Slurm is
    one process, whatever number of tasks was asked for: tasks are what `srun` starts.
    """
    if env.get("WORLD_SIZE", "").strip():
        return _of_torchrun(env)
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdecimal() and int(tasks) > 1 and env.get("SLURM_PROCID", "").isdecimal():
        return _of_slurm(env, int(tasks))
    for rank, size, local in _MPI:
        if env.get(size, "").isdecimal() and int(env[size]) > 1 and env.get(rank, "").isdecimal():
            return _of_mpi(env, int(env[rank]), int(env[size]), env.get(local, ""))
    return ALONE


def is_rank_zero() -> bool:
    """Whether this process speaks for all that were started with it; True for one that is alone."""
    try:
        return place().rank == 0
    except ValueError:
        return os.environ.get("RANK", "0") == "0"


def unheeded_tasks(env: Mapping[str, str] = os.environ) -> str | None:
    """The launcher whose tasks each have a group of one, as a `torchrun` in each of them makes it; None else."""
    if env.get("WORLD_SIZE", "").strip() != "1":
        return None
    around = place({name: value for name, value in env.items() if name not in _TORCHRUN} | _ANYWHERE)
    return f"{around.launcher} has started task {around.rank} of {around.size}" if around.size > 1 else None


_ANYWHERE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def _of_torchrun(env: Mapping[str, str]) -> Place:
    values = {name: env.get(name, "").strip() for name in _TORCHRUN}
    size = values["WORLD_SIZE"]
    if not size.isdecimal() or size == "0":
        raise ValueError(f"WORLD_SIZE is {size!r}, not a number of processes; {HOW_TO_START.format('GPUS')}")
    if int(size) == 1:
        return ALONE
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={size} is set and {', '.join(missing)} not: torchrun has not started this process."
            f" {HOW_TO_START.format(size)}"
        )
    rank, port = values["RANK"], values["MASTER_PORT"]
    if not rank.isdecimal() or int(rank) >= int(size):
        raise ValueError(f"RANK is {rank!r}, not one of 0 .. {int(size) - 1}; {HOW_TO_START.format(size)}")
    if not port.isdecimal():
        raise ValueError(f"MASTER_PORT is {port!r}, not a port; {HOW_TO_START.format(size)}")
    local = env.get("LOCAL_RANK", rank)
    return Place(int(rank), int(size), int(local), values["MASTER_ADDR"], int(port), "torchrun")


def _of_slurm(env: Mapping[str, str], tasks: int) -> Place:
    """A task of `srun`: rank zero is on the first node, at a port that follows from the numbers of job and step."""
    rank, local = int(env["SLURM_PROCID"]), env.get("SLURM_LOCALID", "0")
    host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", ""))
    job, step = (_number(env.get(name, "")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = env.get("MASTER_PORT", "")
    number = int(port) if port.isdecimal() else _FIRST_PORT + (31 * job + step) % _PORTS
    return Place(rank, tasks, _number(local), host, number, "Slurm")


def _of_mpi(env: Mapping[str, str], rank: int, size: int, local: str) -> Place:
    host, port = env.get("MASTER_ADDR", ""), env.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        raise ValueError(
            f"MPI has started task {rank} of {size}, and MASTER_ADDR and MASTER_PORT do not say where they meet; export"
            " both (the first host and a free port) to mpirun -x, or start one torchrun on each node"
        )
    return Place(rank, size, _number(local), host, int(port), "MPI")


def first_host(hosts: str) -> str:
    """The first name of a list as Slurm writes it: node[03-05,8],gpu1 begins with node03; else localhost."""
    name = re.match(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\])?([^,\[]*)", hosts)
    return "".join(part or "" for part in name.groups()) if name and name[0] else "localhost"


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
