"""Long use: memory, open files and threads stay as they are, and the disk holds no more than was said at the start."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil
import pytest

from tiny_runs import VALIDATED, Place, at_steps, facts, write_images, write_recipe
from unveil.runs.checkpoint_state import folders

MB = 10**6


def said_at_most(text: str) -> float:
    """The megabytes of weights that a run says it may take."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith("disk: at most")]
    found = re.search(r": ([\d.e+]+) MB, beside metrics", line)
    assert found, line
    return float(found[1])


def size_of(run: Path) -> float:
    """The megabytes of the weights in a run folder."""
    return sum(file.stat().st_size for file in run.rglob("*.safetensors")) / MB


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_disk_holds_at_most_what_was_said_at_the_start(place: Place, monkeypatch, capsys, optimizer: str):
    sizes: list[float] = []
    counts: list[int] = []

    def look() -> None:
        sizes.append(size_of(place.run))
        counts.append(len(folders(place.run)))

    words = (*VALIDATED, "--epochs", "36", "--save-minutes", "0", "--optimizer", optimizer, "--val-every", "18")
    at_steps(monkeypatch, range(2, 109), look)
    assert place.pretrain(*words, "--device", "cpu", "--compile", "off", "--workers", "1") == 0
    most = said_at_most(capsys.readouterr().err)
    assert max(counts) == 4, "two good ones beside the newest two"
    assert len(folders(place.run)) == 2, "at the end nothing is gone back to"
    headers = 0.02 * len(list(place.run.rglob("*.safetensors"))) + 0.1  # names and shapes, beside the numbers
    assert max(sizes) <= most + headers
    assert max(sizes) > 0.5 * most, "and not much less"


@pytest.mark.slow
def test_memory_files_and_threads_stay_flat_over_20_000_steps_and_50_epochs(tmp_path: Path, monkeypatch, capsys):
    place = Place(tmp_path, write_recipe(tmp_path), str(write_images(tmp_path / "images", 4211)))
    process, seen = psutil.Process(), list[tuple[float, int, int]]()

    def look() -> None:
        seen.append((process.memory_info().rss / MB, process.num_fds(), threading.active_count()))

    at_steps(monkeypatch, range(1000, 20001, 500), look)
    words = ("--epochs", "50", "--device", "cpu", "--compile", "off", "--workers", "2", "--threads", "1")
    assert place.pretrain(*VALIDATED, *words, "--save-minutes", "0.05") == 0
    assert facts(place.run)["data"]["train"] == 4000
    memory, files, threads = zip(*seen[4:], strict=True)
    assert max(memory) - min(memory) < 0.05 * min(memory) + 10
    assert max(files) - min(files) <= 2  # a file that is read just now
    assert max(threads) == min(threads)
    assert size_of(place.run) <= said_at_most(capsys.readouterr().err) + 1
    assert (place.run / "metrics.jsonl").stat().st_size < 2 * MB
