"""Jobs of Slurm: the batch script of a command, which is requeued until it is done, and its submission by `sbatch`."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass

from .atomic import make_folder, write_text
from .console import user_path

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
_RESTARTS = 20  # of a job that a lost process or a signal has ended
_OWN_WORDS = ("cpus_per_task", "time", "partition", "account", "qos", "constraint")  # passed on as they are


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What a job of Slurm is given, by the names of its own options; `folder` takes its script and output."""

    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_seconds: int = 120
    folder: str = "slurm"


@dataclass(frozen=True, kw_only=True)
class SlurmJob(SlurmOptions):
    """A command of unveil (the words after `unveil`) as a job of Slurm; the fields are the options of `unveil submit`.

    Raises ValueError for numbers and times that Slurm would refuse.
    """

    command: tuple[str, ...]
    name: str
    nodes: int = 1
    tasks_per_node: int = 1
    array: int | None = None

    def __post_init__(self) -> None:
        for option in ("nodes", "array", "tasks_per_node", "cpus_per_task"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"--{option.replace('_', '-')} {value}: a number of at least 1 is needed")
        for option in ("gpus_per_node", "signal_seconds"):
            if getattr(self, option) < 0:
                raise ValueError(
                    f"--{option.replace('_', '-')} {getattr(self, option)}: a number of at least 0 is needed"
                )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(
                f"--time {self.time}: a time as Slurm writes it is needed: 60 (minutes), 12:00:00, 2-00:00:00"
            )

    @property
    def script(self) -> str:
        """The batch script: the options as `#SBATCH` lines, the command, and when to requeue it."""
        has_array = self.array is not None
        options = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "array": f"0-{self.array - 1}" if self.array is not None else None,
            "output": f"{self.folder}/{self.name}-%{'A_%a' if has_array else 'j'}.out",
            "open-mode": "append",
            "signal": f"USR1@{self.signal_seconds}",
            **{name.replace("_", "-"): getattr(self, name) for name in _OWN_WORDS},
        }
        lines = [f"#SBATCH --{option}={value}" for option, value in options.items() if value is not None]
        unit = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if has_array else "$SLURM_JOB_ID"
        return "\n".join(
            [
                "#!/bin/bash",
                *lines,
                "#SBATCH --requeue",
                "",
                "# SIGUSR1 goes to the processes of srun: they save, and end with status 138. 143 is SIGTERM, 75 a",
                "# process that was lost, 2 to 3 a mistake or a training that went wrong, which another start does not",
                "# mend.",
                f"srun --kill-on-bad-exit=0 {shlex.join(['unveil', *self.command])}",
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

    def submit(self) -> None:
        """Write the script into the folder and give it to `sbatch`. Raises ValueError where that lacks or refuses."""
        sbatch = shutil.which("sbatch")
        if sbatch is None:
            raise ValueError("there is no sbatch on this machine: submit on a login node of Slurm, or give --dry-run")
        place = user_path(self.folder)
        make_folder(place)
        file = place / f"{self.name}.sbatch"
        write_text(file, self.script)
        done = subprocess.run([sbatch, "--parsable", str(file)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"sbatch refused {file}: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
        number = done.stdout.strip().partition(";")[0]
        print(
            f"job {number}: {shlex.join(['unveil', *self.command])}\nscript: {file}\n"
            f"output: {place}/{self.name}-{number}*"
        )
