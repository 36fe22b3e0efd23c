"""Several processes on one model: real ones, started by torchrun, learn what one process learns."""

from __future__ import annotations

import os
import platform
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_runs import facts, journal, listing
from unveil.cli import main
from unveil.runs.checkpoint import read_latest
from unveil.runs.console import log
from unveil.training.distributed import SINGLE_PROCESS, process_group
from unveil.training.metrics import progress_text

LAUNCHER = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
WORDS = """multimae --data data --modalities rgb depth --visible 0.375 --size nano --image-size 16 --patch 8
    --decoder-dim 16 --decoder-depth 1 --decoder-heads 2 --batch-size 8 --lr 0.05 --workers 1
    --precision float32"""


PORT = os.getpid()  # stands for a job's number, from which the port of its processes follows


def start(
    folder: Path, words: Sequence[str], processes: int = 1, env: Mapping[str, str] | None = None, restarts: int = 0
) -> subprocess.Popen[str]:
    """`unveil pretrain` in some processes of torchrun, or in one, with more in its environment."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    several += [f"--max-restarts={restarts}"]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "unveil", "pretrain", *words]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, **(env or {})}
    return subprocess.Popen(command, cwd=folder, text=True, start_new_session=True, env=env, **pipes)


def done(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out + err


def learned(run: Path) -> dict[str, Tensor]:
    latest, _ = read_latest(run)
    assert latest
    return latest.model


def same(a: Path, b: Path) -> None:
    """Two runs have learned the same, up to the order of sums.

    A bias of keys changes no attention: its gradient is rounding alone, which Adam makes as large as any other.
    """
    one, other = learned(a), learned(b)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if not name.endswith("kv.bias"):
            message = partial("{}: {}".format, name)
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=message)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour and depth of 21 samples; every third has no depth, so processes have unequal numbers that count."""
    folder = tmp_path_factory.mktemp("pairs")
    for modality in ("rgb", "depth"):
        (folder / "data" / modality).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(21):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"data/rgb/{i:02}.png")
        if i % 3:
            depth = rng.integers(1000, 5000, (16, 16)).astype(np.uint16)
            Image.fromarray(depth).save(folder / f"data/depth/{i:02}.png")
    return folder


def words(out: str, *more: str) -> list[str]:
    return [*WORDS.split(), "--epochs", "3", "--out", out, *more]


def alone(folder: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`unveil pretrain` in this process, which is quicker than to start another one."""
    monkeypatch.chdir(folder)
    assert main(["pretrain", *words]) == 0


def test_two_processes_learn_what_one_learns_where_modalities_are_missing(pairs: Path, monkeypatch) -> None:
    """In micro-batches; without them two processes learn in the test below."""
    alone(pairs, words("alone"), monkeypatch)
    printed = done(start(pairs, words("two", "--micro-batch", "3"), processes=2))
    same(pairs / "alone", pairs / "two")
    assert facts(pairs / "two")["status"] == "finished"
    assert facts(pairs / "two")["settings"]["processes"] == 2
    one, two = (journal(pairs / run, "step") for run in ("alone", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert all(len(line["data_waits"]) == 2 for line in two)
    assert "data_waits" not in one[0]
    assert printed.count("next: ") == 1  # one of them speaks for both


@pytest.mark.parametrize(
    ("waits", "shown"),
    [([], "data wait 2%  "), ([0.02, 0.06], "data wait 2%  "), ([0.02, 0.1, 0.41, 0.2], "data wait 2% (rank 2 41%)  ")],
)
def test_the_rank_that_waits_longest_for_data_is_named(waits: list[float], shown: str) -> None:
    line = {"step": 1, "epoch": 0.5, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "images_per_second": 9.0, "skipped": 0}
    line |= {"data_wait": 0.02, "memory_mb": 1024.0, "spikes": 0, **({"data_waits": waits} if waits else {})}
    assert shown in progress_text(line, 10, 2)


def undisturbed(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (pairs / "undisturbed").exists():
        alone(pairs, words("undisturbed", "--epochs", "20"), monkeypatch)


def test_a_run_of_two_processes_is_stopped_and_goes_on_alone(pairs: Path, monkeypatch) -> None:
    undisturbed(pairs, monkeypatch)
    process = start(pairs, words("stopped", "--epochs", "20"), processes=2)
    metrics = pairs / "stopped" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 4' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # torchrun passes it on
    _, err = process.communicate(timeout=240)
    assert facts(pairs / "stopped")["status"] == "stopped", err
    assert "stopped; everything is in" in err
    alone(pairs, words("stopped", "--epochs", "20"), monkeypatch)
    assert facts(pairs / "stopped")["status"] == "finished"
    same(pairs / "undisturbed", pairs / "stopped")


def test_tasks_of_srun_train_one_model_and_a_killed_one_is_named(pairs: Path, monkeypatch) -> None:
    """Without torchrun. The run goes on alone, and ends with the weights of one that was left alone."""
    undisturbed(pairs, monkeypatch)
    tasks = [start(pairs, words("killed", "--epochs", "20", "--save-minutes", "0"), env=srun(rank)) for rank in (0, 1)]
    metrics = pairs / "killed" / "metrics.jsonl"
    while tasks[0].poll() is None and not (metrics.exists() and '"step": 4' in metrics.read_text()):
        time.sleep(0.01)
    tasks[1].kill()
    _, err = tasks[0].communicate(timeout=240)
    tasks[1].communicate()
    assert tasks[0].returncode == 75, err
    assert f"\nerror: rank 1 (process {tasks[1].pid} on {platform.node()}) ended without a word; the same" in err
    assert [word for word in ("Traceback", "gloo", "FutureWarning", "stopping after") if word in err] == []
    assert facts(pairs / "killed")["status"] == "failed"
    assert "rank 1" in facts(pairs / "killed")["error"]
    alone(pairs, words("killed", "--epochs", "20", "--save-minutes", "0"), monkeypatch)
    same(pairs / "undisturbed", pairs / "killed")


def srun(rank: int) -> dict[str, str]:
    """What `srun -n 2` sets on one machine, at a free port."""
    return {
        **{"SLURM_JOB_ID": str(PORT), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"},
        **{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost"},
    }


@pytest.mark.scale
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_whose_processes_are_killed_at_random_is_started_again_to_the_same_bits(pairs: Path, seed: int) -> None:
    """torchrun starts them again, while they start, train or save; the same samples are seen in the same order."""
    more, rng = ("--epochs", "40", "--save-minutes", "0"), random.Random(seed)
    if not (pairs / "quiet").exists():
        done(start(pairs, words("quiet", *more), processes=2))
    process = start(pairs, words(f"restarted-{seed}", *more), processes=2, restarts=4)
    killed: set[int] = set()
    while len(killed) < 4:
        time.sleep(rng.random() * 12)
        ranks = [c for c in psutil.Process(process.pid).children() if c.pid not in killed and "unveil" in c.cmdline()]
        if len(ranks) < 2:
            continue
        rank = rng.choice(ranks)
        rank.kill()
        killed |= {rank.pid}
    err = done(process)
    assert "Traceback" not in err
    one, other = learned(pairs / "quiet"), learned(pairs / f"restarted-{seed}")
    assert all(torch.equal(other[name], value) for name, value in one.items())
    lines = [[x["loss"] for x in journal(pairs / run, "step")] for run in ("quiet", f"restarted-{seed}")]
    assert lines[0] == lines[1]
    before = listing(pairs / "quiet")
    assert "quiet holds this run, finished" in done(start(pairs, words("quiet", *more), processes=2))
    assert listing(pairs / "quiet") == before


def test_a_mistake_is_told_once_and_nothing_is_written(pairs: Path) -> None:
    process = start(pairs, words("never", "--batch-size", "7"), processes=2)
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert err.count("--batch-size 7 is not divisible by the world size 2; give 6 or 8") == 1
    assert not (pairs / "never").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set and RANK, MASTER_ADDR, MASTER_PORT not"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT not: torchrun has not started"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four', not a number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK is '2', not one of 0"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)
def test_variables_of_a_launcher_that_describe_no_group_are_one_error(monkeypatch, variables, message):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), process_group():
        pass


def test_a_process_whose_partners_do_not_come_says_that_it_waits_and_stops(monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in zip(LAUNCHER, ("2", "0", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("unveil.training.distributed._RENDEZVOUS", timedelta(seconds=1))
    with pytest.raises(ValueError, match=r"did not meet at 127\.0\.0\.1"), process_group():
        pass
    assert f"waiting for 1 other process (WORLD_SIZE=2) at 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_torchrun_of_one_process_in_each_task_is_warned_of(monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    with process_group() as group:
        assert group == SINGLE_PROCESS
    stderr = capsys.readouterr().err
    assert "Slurm has started task 1 of 2, and each trains a model of its own" in stderr
    assert stderr.count("warning") == 1


def test_a_rank_without_a_world_silences_nothing(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    log("a message")
    assert capsys.readouterr().err == "a message\n"
