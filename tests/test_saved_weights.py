"""Weights that a run keeps on its way: which, what reads them, and a run that was stopped meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from tiny_runs import Killed, at_steps, journal, kill, weights, write_images, write_recipe
from unveil.commands.load import load
from unveil.runs.checkpoint_state import weights_by_step

TRAIN = {"epochs": 3.0, "batch_size": 10, "lr": 0.05, "warmup_epochs": 1.0, "image_size": (16,)}
SETTINGS: dict[str, Any] = {"device": "cpu", "workers": 1, "compile": "off", "save_every": 1.0, **TRAIN}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a run of three epochs of three steps that kept the weights of each."""
    home = tmp_path_factory.mktemp("keep")
    unveil.pretrain(write_recipe(home), data=str(write_images(home / "images")), out=str(home / "run"), **SETTINGS)
    return home


def files_of(run: Path) -> dict[str, bytes]:
    return {f.parent.name: f.read_bytes() for f in sorted((run / "kept").glob("*/model.safetensors"))}


def test_the_weights_of_each_epoch_stay(made: Path):
    result = files_of(made / "run")
    assert list(result) == ["step-00000003", "step-00000006", "step-00000009"]
    assert len(set(result.values())) == 3
    assert result["step-00000009"] == weights(made / "run")[0]
    assert list(weights_by_step(made / "run")) == [3, 6, 9]
    whole = unveil.Run.open(made / "run").checkpoint(2.0)
    assert (whole.state["step"], whole.state["epoch"], whole.optimizer) == (6, 2.0, {})


def test_a_run_that_was_killed_keeps_the_same(made: Path, monkeypatch: pytest.MonkeyPatch):
    again = str(made / "again")
    options = {"data": str(made / "images"), "out": again, **SETTINGS, "save_minutes": 0.0}
    at_steps(monkeypatch, [7], kill)
    with pytest.raises(Killed):
        unveil.pretrain(str(made / "tiny.py"), **options)
    unveil.pretrain(str(made / "tiny.py"), **options)
    assert files_of(made / "again") == files_of(made / "run")


def test_they_are_loaded_measured_and_looked_at(made: Path, capsys: pytest.CaptureFixture[str]):
    run, images = str(made / "run"), torch.rand(2, 3, 16, 16)
    first, last, newest = (load(run, device="cpu", at_epoch=epoch)(images) for epoch in (1, 3, None))
    assert torch.equal(last, newest)
    assert not torch.equal(first, last)
    data = str(made / "images")
    (early,) = unveil.evaluate(run, data=data, protocol=("knn",), baselines=False, at_epoch=1, device="cpu")
    stored = json.loads((made / "run/eval/epoch-1/knn.json").read_text())
    assert stored["metrics"] == early.metrics
    assert not (made / "run/eval/knn.json").exists()
    losses = [
        unveil.evaluate(run, data=data, protocol=("heldout",), baselines=False, at_epoch=epoch, device="cpu")[0].metrics
        for epoch in (1, 3, None)
    ]
    assert losses[1] == losses[2]
    assert losses[0] != losses[2]
    analysis = unveil.analyze_attention(run, device="cpu")
    assert [line["epoch"] for line in analysis["checkpoints"]] == [1, 2, 3]
    assert journal(made / "run", "step")
    assert unveil.report([run]).exists()


def test_what_is_not_there_is_told(made: Path):
    with pytest.raises(ValueError, match=r"no weights of epoch 1.5: there are epochs 1, 2, 3; .*--save-every"):
        load(made / "run", at_epoch=1.5)
    with pytest.raises(ValueError, match="--save-every 0"):
        unveil.pretrain(str(made / "tiny.py"), data=str(made / "images"), out=str(made / "no"), save_every=0.0)
    with pytest.raises(ValueError, match="there are epochs 1, 2, 3"):
        unveil.evaluate(str(made / "run"), data=str(made / "images"), protocol=("reconstruct",), at_epoch=1.5)
