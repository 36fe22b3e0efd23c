"""Run folders that lost a part: what holds checkpoints or metrics is restored or refused, and never emptied."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tiny_runs import STEPS, TRAIN, Place, at_steps, facts, interrupt, journal, listing, weights
from unveil.cli import main
from unveil.modeling.encoder import SIZES


@pytest.fixture
def stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A run that was stopped after four steps."""
    at_steps(monkeypatch, [4], interrupt)
    assert place.pretrain(*TRAIN) == 130
    return place


def trained(run: Path) -> dict[str, float]:
    return {name: time for name, time in listing(run).items() if not name.startswith(".lock")}


@pytest.mark.parametrize("lock", [True, False])
def test_run_json_that_is_gone_is_restored_from_the_checkpoint(
    stopped: Place, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str], lock: bool
):
    before = facts(stopped.run)
    (stopped.run / "run.json").unlink()
    if not lock:  # a copy without hidden files
        (stopped.run / ".lock").unlink()
    assert stopped.pretrain(*TRAIN, "--seed", "1") == 2
    assert "seed: 0 then, 1 now" in capsys.readouterr().err
    assert stopped.pretrain(*TRAIN) == 0
    error = capsys.readouterr().err
    assert "run.json was gone; it is restored from the checkpoint" in error
    assert "at step 4" in error
    assert weights(stopped.run) == weights(whole(*TRAIN))
    after = facts(stopped.run)
    assert after["last_checkpoint"] == STEPS
    assert {k for k in before if before[k] != after[k]} <= {"status", "seconds", "last_checkpoint", "error"}


def test_training_does_not_go_on_through_links(stopped: Place, capsys: pytest.CaptureFixture[str]):
    """A stranger's run could write elsewhere; with --overwrite links are removed, not what they lead to."""
    (stopped.run / "heads").mkdir()
    for name in ("checkpoints", "replay", "metrics.jsonl", "pictures"):
        theirs, path = stopped.path / f"their-{name}", stopped.run / name
        path.rename(theirs) if path.exists() else theirs.mkdir()
        path.symlink_to(theirs)
        assert stopped.pretrain(*TRAIN) == 2
        assert f"{name} is a link that leads out of {stopped.run}" in capsys.readouterr().err
        if name != "pictures":
            path.unlink()
            theirs.rename(path)
    (stopped.run / "checkpoints").rename(stopped.path / "elsewhere")
    (stopped.run / "checkpoints").symlink_to(stopped.path / "elsewhere")
    before = trained(stopped.path / "elsewhere")
    assert stopped.pretrain(*TRAIN, "--overwrite") == 0
    assert trained(stopped.path / "elsewhere") == before
    assert not any((stopped.run / name).is_symlink() for name in ("checkpoints", "pictures"))
    assert not (stopped.run / "heads").exists(), "of the run that was replaced"


def test_run_json_that_is_gone_and_stored_nowhere_stops(stopped: Place, capsys: pytest.CaptureFixture[str]):
    (stopped.run / "run.json").unlink()
    shutil.rmtree(stopped.run / "checkpoints")
    before = trained(stopped.run)
    assert stopped.pretrain(*TRAIN) == 2
    assert "whose run.json is gone; left are metrics.jsonl" in capsys.readouterr().err
    assert trained(stopped.run) == before
    assert stopped.pretrain(*TRAIN, "--overwrite") == 0
    assert weights(stopped.run)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("how", ["gone", "empty", "metrics too"])
def test_checkpoints_that_are_gone_stop_the_run_and_its_metrics_stay(
    stopped: Place, capsys: pytest.CaptureFixture[str], how: str, old: bool
):
    shutil.rmtree(stopped.run / "checkpoints")
    if how == "empty":
        (stopped.run / "checkpoints").mkdir()
    if how == "metrics too":
        (stopped.run / "metrics.jsonl").unlink()
    if old:  # a run from before that was written down
        kept = {k: v for k, v in facts(stopped.run).items() if k != "last_checkpoint"}
        (stopped.run / "run.json").write_text(json.dumps(kept))
    if how == "metrics too" and old:
        return
    before = trained(stopped.run)
    assert stopped.pretrain(*TRAIN) == 2
    error = capsys.readouterr().err
    assert "was trained to step 4, and its checkpoints are gone; left are run.json" in error
    assert "--overwrite" in error
    assert trained(stopped.run) == before
    assert stopped.pretrain(*TRAIN, "--lr", "0.01") == 2  # other options do not empty it either
    assert trained(stopped.run) == before


def test_metrics_that_are_gone_are_missed_aloud(
    stopped: Place, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    (stopped.run / "metrics.jsonl").unlink()
    assert stopped.pretrain(*TRAIN) == 0
    assert "metrics.jsonl is gone: curves begin at step 4" in capsys.readouterr().err
    assert weights(stopped.run) == weights(whole(*TRAIN))
    assert [line["step"] for line in journal(stopped.run, "step")][-1] == STEPS


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask for groups")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_weights_can_be_read_by_whom_the_umask_lets(place: Place, umask: int):
    before = os.umask(umask)
    try:
        assert place.pretrain(*TRAIN, "--epochs", "1") == 0
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in place.run.rglob("*") if p.is_file() and ".lock" not in p.name}
    assert len([name for name in modes if name.endswith(".safetensors")]) == 2
    assert set(modes.values()) == {0o666 & ~umask}


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_a_folder_that_is_moved_while_it_trains_stops_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
):
    moved = place.path / "moved"

    def move() -> None:
        if how == "removed":
            shutil.rmtree(place.run)
        else:
            place.run.rename(moved)
        if how == "replaced":
            place.run.mkdir()

    at_steps(monkeypatch, [5], move)
    assert place.pretrain(*TRAIN, "--save-minutes", "0") == 2
    assert "run was renamed or removed while it was trained in" in capsys.readouterr().err
    assert not list(place.run.rglob("*"))
    if how == "renamed":
        assert place.pretrain(*TRAIN, out="moved") == 0
        assert weights(moved)


def test_images_of_other_content_under_the_same_names_are_refused(stopped: Place, capsys: pytest.CaptureFixture[str]):
    one, other = (Path(stopped.data) / name for name in ("even/010.png", "odd/011.png"))
    before = one.read_bytes()
    shutil.copyfile(other, one)
    assert stopped.pretrain(*TRAIN) == 2
    assert "1 of 38 images looked at have other content than when" in capsys.readouterr().err
    one.write_bytes(before)
    assert stopped.pretrain(*TRAIN) == 0


def test_a_teacher_of_other_weights_under_the_same_name_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert place.pretrain(*TRAIN, "--epochs", "1", out="teacher") == 0
    file = place.path / "teacher.safetensors"
    step = next((place.path / "teacher" / "checkpoints").glob("step-*"))
    shutil.copyfile(step / "model.safetensors", file)
    words = ["pretrain", "milan", "--teacher", str(file), "--data", place.data, "--out", str(place.run)]
    words += ["--size", "tiny", "--patch", "8", "--decoder-dim", "16", "--decoder-depth", "1", "--decoder-heads", "2"]
    words += ["--image-size", "16", "--epochs", "3", "--batch-size", "10"]
    at_steps(monkeypatch, [4], interrupt)
    monkeypatch.setitem(SIZES, "tiny", (24, 1, 2))
    assert main(words) == 130
    assert facts(place.run)["teachers"]
    tensors = load_file(file)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    name = "encoder.blocks.0.attn.proj.weight"
    save_file({**tensors, name: tensors[name] + 1}, file, metadata=metadata)
    capsys.readouterr()
    assert main(words) == 2
    assert "has other weights than when" in capsys.readouterr().err
    save_file(tensors, file, metadata=metadata)
    assert main(words) == 0
