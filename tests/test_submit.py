"""`unveil submit`: the script, and a fake Slurm that runs it and requeues it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from unveil.cli import main
from unveil.experiments.study.schedule import stopped_by_signals
from unveil.runs.console import Stopped, exit_status

PRETRAIN = ["pretrain", "mae", "--data", "my photos", "--out", "runs/a"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sbatch, which runs the script for each task, srun, scontrol and unveil; they write to `calls`."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    programs = {
        "sbatch": f"""
            script=${{@: -1}}
            echo "sbatch $*" >> {calls}
            last=$(sed -n 's/^#SBATCH --array=0-//p' $script)
            for task in $(seq 0 ${{last:-0}}); do
                if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task; fi
                SLURM_JOB_ID=7 bash $script; echo "status $?" >> {calls}
            done
            echo "7;cluster"
        """,
        "srun": 'shift; exec "$@"',
        "scontrol": f'echo "scontrol $*" >> {calls}',
        "unveil": f'printf "unveil"  >> {calls}; printf " [%s]" "$@" >> {calls}; echo >> {calls}; exit ${{ENDS:-0}}',
    }
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_job_is_submitted_and_its_command_run_as_given(slurm: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--nodes", "4", "--gpus-per-node", "8", "--time", "12:00:00", "--partition", "gpu", "--account", "lab"]
    assert main(["submit", *words, "--", *PRETRAIN]) == 0
    out = capsys.readouterr().out
    assert "job 7: unveil pretrain mae --data 'my photos' --out runs/a" in out
    lines = (slurm.parent / "slurm" / "unveil-pretrain.sbatch").read_text().splitlines()
    for option in ("nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=12:00:00", "partition=gpu", "account=lab"):
        assert f"#SBATCH --{option}" in lines
    assert {"#SBATCH --signal=USR1@120", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= {*lines}
    assert slurm.read_text().splitlines()[1:] == [
        "unveil [pretrain] [mae] [--data] [my photos] [--out] [runs/a]",
        "status 0",
    ]


@pytest.mark.parametrize(
    ("ends", "restarts", "again"), [(138, 0, True), (75, 3, True), (3, 0, False), (138, 20, False)]
)
def test_a_job_that_was_stopped_or_lost_a_process_is_requeued(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, ends: int, restarts: int, again: bool
):
    monkeypatch.setenv("ENDS", str(ends))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    assert main(["submit", "--", *PRETRAIN]) == 0
    calls = slurm.read_text().splitlines()
    assert ("scontrol requeue 7" in calls) == again
    assert calls[-1] == f"status {ends}"


def test_a_study_is_an_array_of_a_task_for_each_run(slurm: Path, monkeypatch: pytest.MonkeyPatch):
    study = ["study", "crossmae-mask-ratio", "--scale", "smoke", "--seeds", "2", "--out", "runs/s"]
    monkeypatch.setenv("ENDS", "138")
    assert main(["submit", "--gpus-per-node", "1", "--", *study]) == 0
    calls = slurm.read_text().splitlines()
    commands = [line for line in calls if line.startswith("unveil")]
    assert len(commands) > 2
    assert len(commands) % 2 == 0  # all arms, with two seeds
    assert len({*commands}) == 1  # tasks share the runs of the folder
    assert [line for line in calls if line.startswith("scontrol")] == [
        f"scontrol requeue 7_{task}" for task in range(len(commands))
    ]


def test_a_dry_run_prints_a_script_of_bash_and_submits_nothing(slurm: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["submit", "--dry-run", "--", *PRETRAIN]) == 0
    text = capsys.readouterr().out.partition("next: ")[0]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=unveil-pretrain\n")
    assert not slurm.exists()
    assert not (slurm.parent / "slurm").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "submit needs a command after --"),
        (["--", "paint"], "no command paint"),
        (["--", *PRETRAIN[:4]], "pretrain needs --out"),
        (["--time", "soon", "--", *PRETRAIN], "--time soon: a time as Slurm writes it"),
        (["--nodes", "0", "--", *PRETRAIN], "--nodes 0"),
        (["--nodes", "2", "--", "report", "runs/a"], "report runs in one process"),
    ],
)
def test_a_mistake_is_one_line_and_submits_nothing(slurm: Path, capsys: pytest.CaptureFixture[str], words, said: str):
    assert main(["submit", *words]) == 2
    assert said in capsys.readouterr().err
    assert not slurm.exists()


def test_without_slurm_it_says_where_to_submit(
    slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(slurm.parent))
    assert main(["submit", "--", *PRETRAIN]) == 2
    assert "no sbatch on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_tasks_of_a_study_stop_in_order_by_the_signals_of_slurm(number: signal.Signals):
    """A second signal, as the one at the end of the time, does not disturb what is being saved."""
    before = [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)]

    @stopped_by_signals()
    def task() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        task()
    assert exit_status(stopped.value) == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)] == before
