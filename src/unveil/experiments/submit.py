"""`unveil submit -- COMMAND`: a command as a job of Slurm, which is requeued until it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..recipes.options import accept_python_values
from ..runs.slurm import SlurmJob
from .study.command import with_overrides
from .study.registry import load_study

SEVERAL = ("pretrain", "evaluate", "embed", "pack")  # commands of which each task does a share


@accept_python_values
def submit(
    command: tuple[str, ...],
    *,
    nodes: int = 1,
    gpus_per_node: int = 0,
    tasks_per_node: int | None = None,
    cpus_per_task: int | None = None,
    time: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    name: str | None = None,
    array: int | None = None,
    signal_seconds: int = 120,
    folder: str = "slurm",
    dry_run: bool = False,
) -> str:
    """Submit a command of unveil to Slurm with `sbatch`; returns the script.

    Before the end of its time and when it is preempted the job gets SIGUSR1: the run saves, and the job is requeued.

    nodes: machines
    gpus_per_node: GPUs of each machine; 0 for processors alone
    tasks_per_node: processes on each machine; by default one for each GPU, or one
    cpus_per_task: cores of each process
    time: the most that one start of the job may take, as Slurm writes it: 60 (minutes), 12:00:00, 2-00:00:00
    partition: the partition of the cluster
    account: the account that pays
    qos: the quality of service
    constraint: features that the machines need
    name: of the job; by default unveil- and the command
    array: tasks of an array, each of which runs the command: those of a study share its runs, by default one for each
    signal_seconds: seconds before the end at which the job is told to save
    folder: where the script and the output of the job are written
    dry_run: print the script, and submit nothing
    """
    given = {option: value for option, value in locals().items() if option not in ("command", "dry_run")}
    _check(command, nodes, tasks_per_node)
    if tasks_per_node is None:
        given["tasks_per_node"] = max(1, gpus_per_node) if command[0] in SEVERAL else 1
    given["name"] = name or f"unveil-{command[0]}"
    job = SlurmJob(command=command, **given)
    if dry_run:
        print(job.script, end="")
    else:
        job.submit()
    return job.script


def runs_of(name: str, given: Mapping[str, Any]) -> int:
    """The number of runs of a study with these options of its command."""
    study = load_study(name)
    at = given.get("scale") or ("cpu" if "cpu" in study.scales else next(iter(study.scales)))
    chosen = with_overrides(study, at, arms=given.get("arms", ()), seeds=given.get("seeds"))
    if at not in chosen.scales:
        raise ValueError(f"the study {name} has no scale {at}; there are {', '.join(chosen.scales)}")
    scale = chosen.scales[at]
    return len(chosen.arms_at(at)) * len(scale.settings) * len(scale.seeds)


def _check(command: Sequence[str], nodes: int, tasks_per_node: int | None) -> None:
    if not command:
        raise ValueError("submit needs a command after --, such as unveil submit -- pretrain mae --data D --out runs/a")
    flags = {word.split("=")[0] for word in command}
    if command[0] in ("pretrain", "study", "embed", "pack") and "--out" not in flags:
        raise ValueError(f"{command[0]} needs --out: a job that is requeued continues what is there")
    if command[0] in ("study", "embed") and "--on" in flags and not {"local", "--on=local"} & {*command}:
        raise ValueError(f"{command[0]} --on starts jobs itself: run it without submit, or leave --on out")
    if command[0] not in SEVERAL and (nodes > 1 or (tasks_per_node or 1) > 1):
        raise ValueError(
            f"{command[0]} runs in one process; give no --nodes or --tasks-per-node, and --array for a study"
        )
