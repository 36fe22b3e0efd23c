"""Half an hour with a kill a minute: the run ends in the bits of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_runs import PER_EPOCH, facts, rows, weights, write_images, write_recipe

MINUTES = float(os.environ.get("UNVEIL_SOAK", 30))  # of the run with kills, about
EVERY = 60.0  # seconds from a start to the kill


def begin(folder: Path, out: str, epochs: int) -> subprocess.Popen[bytes]:
    words = ["pretrain", "tiny.py", "--data", "images", "--out", out, "--epochs", str(epochs), "--batch-size", "10"]
    words += ["--image-size", "16", "--threads", "1", "--precision", "float32", "--save-minutes", "0.05"]
    words += ["--val-every", "100"]  # by default it follows the measured speed
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "unveil", *words], cwd=folder, **quiet)


@pytest.mark.slow
@pytest.mark.kill
def test_a_run_with_a_kill_a_minute_ends_in_the_bits_of_one_left_alone(tmp_path: Path, capsys):
    write_images(tmp_path / "images")
    write_recipe(tmp_path)
    began = time.monotonic()
    assert begin(tmp_path, "short", 400).wait() == 0
    epochs = max(400, round(400 * 60 * MINUTES / (time.monotonic() - began)))
    kills, began = 0, time.monotonic()
    while (process := begin(tmp_path, "killed", epochs)).poll() is None:
        try:
            status = process.wait(timeout=EVERY)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert kills <= 10 * MINUTES, "the run does not get on"
    minutes = (time.monotonic() - began) / 60
    assert status == 0
    assert begin(tmp_path, "alone", epochs).wait() == 0
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    last = epochs * PER_EPOCH
    assert weights(killed, last) == weights(alone, last)
    assert rows(killed) == rows(alone)
    assert facts(killed)["status"] == "finished"
    with capsys.disabled():
        print(f" {kills} kills in {minutes:.0f} minutes, {last} updates.", end="")
