"""Trainings of an evaluation that were killed: they go on after their last whole epoch, with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from measuring import on_dense, on_images
from test_segment import tiny
from tiny_runs import write_images
from unveil.data.sources import open_source
from unveil.evaluation import fit
from unveil.evaluation.results import Result, ResultCache

EPOCHS = 12
CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads({threads})
torch.cpu.get_capabilities = dict
sys.path.insert(0, {tests!r})
from test_fit_checkpoints import measured
from unveil.evaluation import fit
fit.SAVE_EVERY = 0
measured({protocol!r}, Path({place!r}), True)
"""


def measured(protocol: str, place: Path, is_kept: bool, progress=lambda what, done, total: None) -> Result:
    cache = ResultCache(place / "unfinished") if is_kept else ResultCache()
    if protocol == "finetune":
        options = {"epochs": EPOCHS, "batch_size": 8, "ema": 0.9, "mixup": 0.8, "drop_path": 0.2}
        images = open_source(place / "images")
        return on_images(tiny(), ["finetune"], images, pool="mean", options=options, cache=cache, progress=progress)[0]
    options = {"epochs": EPOCHS, "batch_size": 4, "frozen": protocol == "frozen", "head": "upernet"}
    return on_dense(tiny(), ["segment"], str(place / "bars"), options=options, cache=cache, progress=progress)[0]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Sixteen labelled images, and eight with labels at every pixel, one of them broken."""
    write_images(tmp_path / "images", 16)
    rng = np.random.default_rng(0)
    for i in range(8):
        for kind, array in (
            ("rgb", rng.integers(0, 256, (16, 16, 3), np.uint8)),
            ("semseg", np.eye(16, k=i - 4, dtype=np.uint8)),
        ):
            (tmp_path / "bars" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "bars" / kind / f"{i}.png")
    (tmp_path / "bars/rgb/2.png").write_bytes(b"no image")
    return tmp_path


def epochs_in(folder: Path) -> int:
    """Of the one training that is kept; 0 where there is none."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            return int(content.metadata()["done"].split('"epochs": ')[1].split(",")[0])
    return 0


@pytest.mark.parametrize("protocol", ["finetune", "segment"])
def test_a_killed_training_costs_an_epoch_and_changes_no_bit(place: Path, protocol: str):
    whole = measured(protocol, place, is_kept=False)
    code = CHILD.format(threads=torch.get_num_threads(), tests=str(Path(__file__).parent), protocol=protocol,
                        place=str(place))  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while epochs_in(place / "unfinished") < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = epochs_in(place / "unfinished")
    assert 2 <= before < EPOCHS
    steps: list[int] = []
    total = 0

    def tell(what: str, done: int, of: int) -> None:
        nonlocal total
        if "training" in what or "fine-tuning" in what:
            steps.append(done)
            total = of

    result = measured(protocol, place, True, tell)
    assert steps[0] > total * before / EPOCHS
    assert len(steps) <= (EPOCHS - before) * 2
    assert (result.metrics, result.details) == (whole.metrics, whole.details)
    assert result.settings == whole.settings  # with the names of what could not be read


def test_what_was_done_counts_for_the_same_training_only(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "SAVE_EVERY", 0)

    def stop(what: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured("segment", place, True, stop)
    assert len(list((place / "unfinished").iterdir())) == 1
    cache = ResultCache(place / "unfinished")
    options = {"epochs": EPOCHS, "batch_size": 4, "frozen": False, "head": "upernet"}
    calls: list[tuple[str, int, int]] = []
    for given in ({**options, "lr": 1e-3}, options):
        calls.append(("begins", 0, 0))
        on_dense(
            tiny(), ["segment"], str(place / "bars"), options=given, cache=cache, progress=lambda *it: calls.append(it)
        )
    first, second = (calls[k + 1][1] for k, it in enumerate(calls) if it[0] == "begins")
    assert first == 4
    assert second > 4 * EPOCHS / 2 - 4
    assert not cache.is_empty
    cache.clear()
    assert not (place / "unfinished").exists()


def test_a_damaged_file_is_told_and_costs_the_time_it_would_have_saved(place: Path):
    whole = measured("frozen", place, is_kept=False)
    measured("frozen", place, is_kept=True)
    (file,) = (place / "unfinished").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    notes: list[str] = []
    options = {"epochs": EPOCHS, "batch_size": 4, "head": "upernet"}
    cache = ResultCache(place / "unfinished")
    (result,) = on_dense(tiny(), ["segment"], str(place / "bars"), options=options, cache=cache, note=notes.append)
    assert result.metrics == whole.metrics
    assert "is damaged" in notes[0]
