"""What only real processes show: killed at random, interrupted, two at once, on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tiny_runs import facts, journal, weights, write_images, write_recipe
from unveil.reporting.run_record import read_run
from unveil.runs.run_config import RunConfig

STEPS = 60


class Command:
    """`unveil pretrain` of a small run in a process of its own; slow enough to be met while it trains."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, folder / "run"
        write_images(folder / "images")
        write_recipe(folder)
        words = (
            "pretrain tiny.py --data images --out run --epochs 20 --batch-size 10 --lr 0.05 --image-size 16 --stages 2"
        )
        self.words = [sys.executable, "-m", "unveil", *words.split()]

    def start(self, *words: str, **given: int) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **given}
        return subprocess.Popen([*self.words, *words], cwd=self.folder, text=True, start_new_session=True, **pipes)

    def met(self, process: subprocess.Popen[str], step: int) -> int:
        """Wait until a step is logged; return the step that it was by then."""
        for _ in range(6000):
            with contextlib.suppress(OSError):
                result = re.findall(r'"kind": "step", "step": (\d+)', (self.run / "metrics.jsonl").read_text())
                if result and int(result[-1]) >= step:
                    return int(result[-1])
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        raise AssertionError(f"step {step} was not reached")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The weights of the same run, never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    process = Command(folder).start()
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return weights(folder / "run", STEPS)


def kill_again_and_again(command: Command, seed: int, times: int) -> None:
    """Kill a run that saves every step, at random moments: in a step, in a save, between the two."""
    rng = random.Random(seed)
    reached = 0
    for _ in range(times):
        process = command.start("--save-minutes", "0")
        reached = command.met(process, reached + rng.randint(1, 8))
        time.sleep(rng.random() * 0.1)
        assert facts(command.run)["status"] == RunConfig.read(command.run).status == "running"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert facts(command.run)["status"] == "running"
        assert RunConfig.read(command.run).status == "killed"
        assert read_run(command.run).text("status") == "killed"
    process = command.start("--save-minutes", "0")
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr


def is_tidy(run: Path) -> bool:
    """Whether no half-written file is left, and the journal reads as one run."""
    steps, looks = ([line["step"] for line in journal(run, kind)] for kind in ("step", "signals"))
    return (
        not [p for p in run.rglob(".*") if p.name not in (".lock", ".lock.owner")]
        and steps == sorted(set(steps))
        and looks == sorted(set(looks))
        and facts(run)["status"] == "finished"
    )


def test_a_run_killed_again_and_again_ends_with_the_same_bits(command: Command, whole: tuple[bytes, bytes]):
    kill_again_and_again(command, seed=0, times=2)
    assert weights(command.run, STEPS) == whole
    assert is_tidy(command.run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_run_killed_at_many_more_moments_ends_with_the_same_bits(
    command: Command, whole: tuple[bytes, bytes], seed: int
):
    kill_again_and_again(command, seed, times=6)
    assert weights(command.run, STEPS) == whole
    assert is_tidy(command.run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_says_how_to_go_on_and_ends_in_order(
    command: Command, whole: tuple[bytes, bytes], number: signal.Signals
):
    process = command.start()
    command.met(process, 5)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert "stopping after this step" in stderr
    assert "To continue: unveil pretrain tiny.py --data images --out run" in stderr
    assert facts(command.run)["status"] == "stopped"
    saved = max(int(p.name[5:]) for p in (command.run / "checkpoints").iterdir())
    assert saved == journal(command.run, "step")[-1]["step"] < STEPS
    assert not [p for p in psutil.process_iter(["pid"]) if _group(p.pid) == process.pid]
    if number is signal.SIGTERM:
        assert command.start().wait(timeout=120) == 0
        assert weights(command.run, STEPS) == whole


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_a_second_signal_stops_at_once(command: Command):
    recipe = command.folder / "tiny.py"
    slow = (
        recipe.read_text().replace("\n\ndef recipe(", SLOW + "\n\ndef recipe(").replace("MaskedModel(enc", "Slow(enc")
    )
    recipe.write_text(slow)
    process = command.start()
    assert process.stderr
    for line in process.stderr:
        if "in the third step" in line:
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    assert time.monotonic() - began < 20  # the step itself would have taken a minute
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert facts(command.run)["status"] == "stopped"


SLOW = """

class Slow(MaskedModel):
    steps = 0

    def forward(self, batch):
        import sys, time
        Slow.steps += self.training and float(batch.progress) > 0  # neither measuring nor looking, nor the first
        if Slow.steps == 2:
            print("in the third step", file=sys.stderr, flush=True)
            time.sleep(60)
        return super().forward(batch)
"""


def test_two_processes_do_not_train_in_one_folder(command: Command):
    first = command.start()
    command.met(first, 1)
    first.send_signal(signal.SIGSTOP)  # it holds the folder for as long as we look
    late = [command.start(), command.start("--overwrite")]
    errors = [process.communicate()[1] for process in late]
    assert facts(command.run)["status"] == "running"
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=120) == 0
    assert [process.returncode for process in late] == [2, 2]
    for text in errors:
        assert f"another process (process {first.pid} on " in text
        assert "Traceback" not in text
    assert is_tidy(command.run)


def test_on_a_terminal_progress_stays_on_its_line(command: Command):
    ours, its = pty.openpty()
    process = command.start(stderr=its)
    os.close(its)
    received = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                received += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.wait() == 0
    text = received.decode()
    shown = [line for line in re.split(r"[\r\n]+", text) if line.startswith("step ")]
    assert text.count("\rstep ") == len(shown) >= 2
    assert shown[-1].startswith(f"step {STEPS}/{STEPS}")
    for item in ("epoch", "loss", "lr", "grad", "images/s", "data wait", "GB"):
        assert item in shown[-1]
    assert " left" in text
    assert text.rstrip(" ").endswith("\n")
