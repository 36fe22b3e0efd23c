"""Studies in which every run has the same time: epochs fitted once, kept, and the user's own teacher in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unveil.experiments.study import Arm, Scale, Setting, Study, cost_estimate
from unveil.experiments.study.command import study
from unveil.experiments.study.cost_estimate import fit_epochs, store_epochs, with_epochs, with_minutes
from unveil.experiments.study.jobs import expand, settled
from unveil.experiments.study.registry import load_study
from unveil.experiments.study.schedule import Schedule
from unveil.experiments.study.worker import perform
from unveil.modeling.encoder import vit
from unveil.modeling.image_encoder import ImageEncoder
from unveil.training.trainer import Settings

OPTIONS = {
    **{"size": "nano", "patch": 8, "image_size": (32,), "epochs": 1, "batch_size": 16},
    **{"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}
STUDY = Study(
    "?",
    (Arm("MAE", "mae"), Arm("taught", "cmtmae", {"teacher": "random"})),
    "MAE",
    {"cpu": Scale((Setting("scenes", "scenes:count=100,size=32"),), (0, 1), {}, OPTIONS, minutes=2.0)},
)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes whose step is timed, from here on: with teachers it takes 40 ms an image, else 10."""
    names: list[str] = []

    def tune_step(config, recipe, modalities, device):
        names.append(config.recipe)
        settings = Settings("cpu", "float32", 16, compile=True, save_minutes=1.0, val_every=1.0)
        return settings, 0.04 if recipe.stages[0].build().teachers else 0.01

    monkeypatch.setattr(cost_estimate, "tune_step", tune_step)
    return names


def test_epochs_are_those_that_fit_and_are_timed_once(timed: list[str], tmp_path: Path):
    epochs = fit_epochs(STUDY, "cpu", tmp_path, "cpu")
    # 120 s at 10 and 40 ms for each of 95 images that are trained on
    assert epochs == {"MAE": pytest.approx(126, rel=0.01), "taught": pytest.approx(31.6, rel=0.01)}
    assert not list(tmp_path.iterdir())
    assert store_epochs(epochs, STUDY.scales["cpu"], tmp_path) == epochs
    assert timed == ["mae", "cmtmae"]

    assert fit_epochs(STUDY, "cpu", tmp_path, "cpu") == epochs
    assert timed == ["mae", "cmtmae"]
    assert store_epochs({"MAE": 1.0, "other": 3.0}, STUDY.scales["cpu"], tmp_path) == {**epochs, "other": 3.0}
    with pytest.raises(ValueError, match="train for 2 minutes each, not 3; give another --out"):
        fit_epochs(with_minutes(STUDY, "cpu", 3.0), "cpu", tmp_path, "cpu")


def test_arms_are_timed_in_turns_and_the_least_time_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    turns: list[str] = []

    def tune_step(config, recipe, modalities, device):
        turns.append(config.recipe)
        return Settings("cpu", "float32", 16, compile=False, save_minutes=1.0, val_every=1.0), 0.04

    def measure_step(recipe, settings, batch, modalities):
        turns.append("cmtmae" if recipe.stages[0].build().teachers else "mae")
        return batch * (0.01 if len(turns) == 6 else 0.05)  # one quiet moment, in the turn of the second arm

    monkeypatch.setattr(cost_estimate, "tune_step", tune_step)
    monkeypatch.setattr(cost_estimate, "measure_step", measure_step)
    epochs = fit_epochs(STUDY, "cpu", tmp_path, "cpu")
    assert turns[:6] == ["mae", "cmtmae"] * 3
    assert epochs == {"MAE": pytest.approx(31.6, rel=0.01), "taught": pytest.approx(126, rel=0.01)}


def test_a_run_and_its_name_follow_from_the_epochs(tmp_path: Path):
    fitted = with_epochs(STUDY, {"MAE": 8.0, "taught": 2.0})
    at = fitted.scales["cpu"]
    assert [settled(arm, at, at.settings[0])["epochs"] for arm in fitted.arms] == [8.0, 2.0]
    names = {job.name for job in expand(fitted, "cpu", tmp_path)}
    assert {job.name for job in expand(with_epochs(STUDY, {"MAE": 8.0, "taught": 2.0}), "cpu", tmp_path)} == names
    assert len({job.name for job in expand(with_epochs(STUDY, {"MAE": 8.0}), "cpu", tmp_path)} & names) == 2


def test_no_time_and_several_settings_are_refused():
    with pytest.raises(ValueError, match="--minutes 0: a time above 0 is needed"):
        with_minutes(STUDY, "cpu", 0)
    at = STUDY.scales["cpu"]
    twice = replace(at, settings=(*at.settings, Setting("more", "scenes:count=50")), minutes=None)
    several = replace(STUDY, scales={"cpu": twice})
    with pytest.raises(ValueError, match="one setting; this one has 2"):
        with_minutes(several, "cpu", 1.0)
    assert with_minutes(several, "cpu", None) == several


def test_a_teacher_that_is_not_there_is_told_before_anything_is_done(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"--teacher nowhere.safetensors: there is no such file"):
        study("cmtmae-ladder", scale="smoke", out=str(tmp_path / "s"), teacher="nowhere.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_ladder_has_every_rung_with_its_controls():
    planned = load_study("cmtmae-ladder")
    options = [(arm.options.get("masking"), arm.options.get("targets")) for arm in planned.arms]
    rungs = [(m, t) for m in ("teacher", "collaborative") for t in ("teacher", "collaborative")]
    assert set(options) == {(None, None), ("uniform", "teacher"), ("teacher", "pixels"), *rungs}
    given = [arm.options for arm in planned.arms]
    whole = [o for o in given if o.get("targets") == o.get("masking") == "collaborative"]
    assert {(d.get("draw"), d.get("teacher")) for d in whole} == {
        (draw, teacher) for draw in (None, "hard") for teacher in (None, "random")
    }
    assert {name for name, at in planned.scales.items() if at.minutes} == {"smoke", "cpu", "gpu"}
    assert all(at.seeds == (0, 1, 2) for name, at in planned.scales.items() if name != "smoke")


def test_the_ladder_with_a_teacher_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def here(schedule: Schedule, tell) -> None:
        for job in schedule.jobs:
            stored = json.loads((schedule.folder / f"jobs/{job.name}.json").read_text())
            perform(schedule.folder / "runs" / job.name, stored)

    monkeypatch.setattr(Schedule, "run", here)
    file = tmp_path / "teacher.safetensors"
    torch.manual_seed(3)
    ImageEncoder(vit("nano", 8, (32,))).save(file)
    chosen = ("random masks, teacher targets", "random teacher")  # the baseline, and one without the file
    given = {"scale": "smoke", "out": str(tmp_path / "s"), "seeds": 1, "device": "cpu", "teacher": str(file)}
    assert study("cmtmae-ladder", arms=chosen, **given)
    stored = json.loads((tmp_path / "s/epochs.json").read_text())
    runs = {json.loads(p.read_text())["arm"]: p.stem for p in (tmp_path / "s/jobs").iterdir()}
    facts = {arm: json.loads((tmp_path / "s/runs" / name / "run.json").read_text()) for arm, name in runs.items()}
    assert set(facts) == set(stored["epochs"]) == set(chosen)
    assert {arm: f["options"]["epochs"] for arm, f in facts.items()} == stored["epochs"]
    assert [facts[arm]["options"]["teacher"] for arm in chosen] == [str(file), "random"]
    assert all(f["status"] == "finished" for f in facts.values())
