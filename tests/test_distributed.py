"""Several processes on one model: real ones, started by torchrun, learn what one process learns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_runs import facts, journal
from unveil.runs.checkpoint import read_latest

WORDS = """multimae --data data --modalities rgb depth --visible 0.375 --size nano --image-size 16 --patch 8
    --decoder-dim 16 --decoder-depth 1 --decoder-heads 2 --batch-size 8 --lr 0.05 --workers 1
    --precision float32"""


def start(folder: Path, words: Sequence[str], processes: int = 1) -> subprocess.Popen[str]:
    """`unveil pretrain` in some processes."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "unveil", "pretrain", *words]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, start_new_session=True, **pipes)


def done(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out + err


def learned(run: Path) -> dict[str, Tensor]:
    found, _ = read_latest(run)
    assert found
    return found.model


def same(a: Path, b: Path) -> None:
    """Two runs have learned the same, up to the order of sums.

    A bias of keys changes no attention: its gradient is rounding alone, which Adam makes as large as any other.
    """
    one, other = learned(a), learned(b)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if not name.endswith("kv.bias"):
            told = partial("{}: {}".format, name)
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=told)


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


def test_two_processes_learn_what_one_learns_where_modalities_are_missing(pairs: Path) -> None:
    done(start(pairs, words("alone")))
    told = done(start(pairs, words("two"), processes=2))
    done(start(pairs, words("parts", "--micro-batch", "3"), processes=2))
    same(pairs / "alone", pairs / "two")
    same(pairs / "alone", pairs / "parts")
    assert facts(pairs / "two")["status"] == "finished"
    assert facts(pairs / "two")["settings"]["processes"] == 2
    one, two = (journal(pairs / run, "step") for run in ("alone", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert told.count("next: ") == 1  # one of them speaks for both


def test_a_run_of_two_processes_is_stopped_and_goes_on_alone(pairs: Path) -> None:
    done(start(pairs, words("undisturbed", "--epochs", "40")))
    process = start(pairs, words("stopped", "--epochs", "40"), processes=2)
    metrics = pairs / "stopped" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 4' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # torchrun passes it on
    _, err = process.communicate(timeout=240)
    assert facts(pairs / "stopped")["status"] == "stopped", err
    assert "stopped; everything is in" in err
    done(start(pairs, words("stopped", "--epochs", "40")))
    assert facts(pairs / "stopped")["status"] == "finished"
    same(pairs / "undisturbed", pairs / "stopped")


def test_a_mistake_is_told_once_and_nothing_is_written(pairs: Path) -> None:
    process = start(pairs, words("never", "--batch-size", "7"), processes=2)
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert err.count("--batch-size 7 is not divisible by the world size 2; give 6 or 8") == 1
    assert not (pairs / "never").exists()
