"""`unveil submit -- COMMAND`: a command as a job of Slurm, which is requeued until it is done."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ..recipes.options import accept_python_values
from ..runs.atomic import make_folder, write_text
from ..runs.console import user_path
from .study.command import with_overrides
from .study.registry import load_study

SEVERAL = ("pretrain", "evaluate", "embed", "pack")  # commands of which each task does a share
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
_RESTARTS = 20  # of a job that a lost process or a signal has ended


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
    _check(command, nodes=nodes, gpus_per_node=gpus_per_node, time=time, array=array, tasks_per_node=tasks_per_node)
    given = dict(locals())
    if tasks_per_node is None:
        given["tasks_per_node"] = max(1, gpus_per_node) if command[0] in SEVERAL else 1
    given["name"] = name or f"unveil-{command[0]}"
    text = script(given)
    if dry_run:
        print(text, end="")
        return text
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise ValueError("there is no sbatch on this machine: submit on a login node of Slurm, or give --dry-run")
    place = user_path(folder)
    make_folder(place)
    file = place / f"{given['name']}.sbatch"
    write_text(file, text)
    done = subprocess.run([sbatch, "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"sbatch refused {file}: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
    number = done.stdout.strip().partition(";")[0]
    print(
        f"job {number}: {shlex.join(['unveil', *command])}\nscript: {file}\noutput: {place}/{given['name']}-{number}*"
    )
    return text


def script(given: Mapping[str, Any]) -> str:
    """The batch script of a job: its options as `#SBATCH` lines, the command, and when to requeue it."""
    has_array = given["array"] is not None
    options = {
        "job-name": given["name"],
        "nodes": given["nodes"],
        "ntasks-per-node": given["tasks_per_node"],
        "gpus-per-node": given["gpus_per_node"] or None,
        "array": f"0-{given['array'] - 1}" if has_array else None,
        "output": f"{given['folder']}/{given['name']}-%{'A_%a' if has_array else 'j'}.out",
        "open-mode": "append",
        "signal": f"USR1@{given['signal_seconds']}",
        **{
            n.replace("_", "-"): given[n]
            for n in ("cpus_per_task", "time", "partition", "account", "qos", "constraint")
        },
    }
    lines = [f"#SBATCH --{option}={value}" for option, value in options.items() if value is not None]
    unit = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if has_array else "$SLURM_JOB_ID"
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            "",
            "# SIGUSR1 goes to the processes of srun: they save, and end with status 138. 143 is SIGTERM, 75 a process",
            "# that was lost, 2 to 3 a mistake or a training that went wrong, which trying again does not mend.",
            f"srun --kill-on-bad-exit=0 {shlex.join(['unveil', *given['command']])}",
            "status=$?",
            "case $status in",
            "138 | 143 | 75)",
            f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {_RESTARTS} ]; then',
            f'        scontrol requeue "{unit}"',
            "    fi",
            "    ;;",
            "esac",
            "exit $status",
            "",
        ]
    )


def runs_of(name: str, given: Mapping[str, Any]) -> int:
    """The number of runs of a study with these options of its command."""
    study = load_study(name)
    at = given.get("scale") or ("cpu" if "cpu" in study.scales else next(iter(study.scales)))
    chosen = with_overrides(study, at, arms=given.get("arms", ()), seeds=given.get("seeds"))
    if at not in chosen.scales:
        raise ValueError(f"the study {name} has no scale {at}; there are {', '.join(chosen.scales)}")
    scale = chosen.scales[at]
    return len(chosen.arms_at(at)) * len(scale.settings) * len(scale.seeds)


def _check(command: Sequence[str], **given: Any) -> None:
    if not command:
        raise ValueError("submit needs a command after --, such as unveil submit -- pretrain mae --data D --out runs/a")
    if command[0] in ("pretrain", "study", "embed", "pack") and not any(w.split("=")[0] == "--out" for w in command):
        raise ValueError(f"{command[0]} needs --out: a job that is requeued continues what is there")
    for option in ("nodes", "array", "tasks_per_node"):
        if given[option] is not None and given[option] < 1:
            raise ValueError(f"--{option.replace('_', '-')} {given[option]}: a number of at least 1 is needed")
    if given["gpus_per_node"] < 0:
        raise ValueError(f"--gpus-per-node {given['gpus_per_node']}: a number of at least 0 is needed")
    if given["time"] is not None and not _TIME.fullmatch(given["time"]):
        raise ValueError(
            f"--time {given['time']}: a time as Slurm writes it is needed: 60 (minutes), 12:00:00, 2-00:00:00"
        )
    if command[0] not in SEVERAL and (given["nodes"] > 1 or (given["tasks_per_node"] or 1) > 1):
        raise ValueError(
            f"{command[0]} runs in one process; give no --nodes or --tasks-per-node, and --array for a study"
        )
