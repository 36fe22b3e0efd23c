"""Callbacks of training and the trackers that are built on them."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import unveil
from tiny_runs import at_steps, interrupt, journal, write_images
from unveil.modeling.masked_model import MaskedModel
from unveil.training import trackers
from unveil.training.callbacks import Callback, Callbacks, TrainingEvent

TRAIN = {"size": "nano", "image_size": 16, "patch": 4, "epochs": 1.0, "batch_size": 8, "lr": 0.01, "device": "cpu"}
LINES: list[dict[str, Any]] = [
    {"kind": "signals", "step": 0, "epoch": 0.0, "heldout_loss": 2.0, "rankme": None},
    {"kind": "step", "step": 1, "epoch": 0.5, "time": 3.0, "loss": 1.5, "losses": {"pixels": 1.5}, "data_waits": [1]},
    {"kind": "spike", "step": 1, "epoch": 0.5, "z": 9.0, "of": "loss"},
    {"kind": "step", "step": 2, "epoch": 1.0, "time": 4.0, "loss": math.nan},
]


class Noted(Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, TrainingEvent]] = []


def _noting(name: str) -> Any:
    return lambda self, event: self.told.append((name, event))


for _name in ("on_start", "on_step", "on_validation", "on_event", "on_checkpoint", "on_end"):
    setattr(Noted, _name, _noting(_name))


class Failing:
    """No `Callback`, with one method, which fails."""

    calls = 0

    def on_step(self, event: TrainingEvent) -> None:
        Failing.calls += 1
        raise ConnectionError("no answer\nfrom the server")


def test_a_run_tells_its_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    noted, options = Noted(), {**TRAIN, "data": write_images(tmp_path / "images"), "out": tmp_path / "run"}
    at_steps(monkeypatch, [2], interrupt)
    with pytest.raises(KeyboardInterrupt):
        unveil.pretrain("mae", callbacks=[Failing(), noted], **options)
    assert [(name, e.step) for name, e in noted.told] == [
        ("on_start", 0), ("on_validation", 0), ("on_step", 1), ("on_step", 2), ("on_checkpoint", 2), ("on_end", 2),
    ]  # fmt: skip
    assert noted.told[-1][1].status == "stopped"
    assert Failing.calls == 1
    said = capsys.readouterr().err
    assert said.count("warning: Failing.on_step failed at step 1 (ConnectionError: no answer from the server)") == 1
    noted.told.clear()
    unveil.pretrain("mae", callbacks=[noted], **options)
    names = [name for name, _ in noted.told]
    assert (names[0], names[-1]) == ("on_start", "on_end")
    start, end = noted.told[0][1], noted.told[-1][1]
    assert (start.step, start.steps, start.status) == (2, 4, "running")
    assert (end.step, end.status) == (4, "finished")
    assert start.options["batch_size"] == 8
    logged = {e.step: e.metrics["loss"] for name, e in noted.told if name == "on_step"}
    assert logged == {line["step"]: line["loss"] for line in journal(tmp_path / "run", "step") if line["step"] > 2}
    validations = [e for name, e in noted.told if name == "on_validation"]
    assert all(isinstance(e.model, MaskedModel) and "rankme" in e.metrics for e in validations)
    saved = [e.checkpoint for name, e in noted.told if name == "on_checkpoint"]
    assert saved[-1] == tmp_path / "run" / "checkpoints" / "step-00000004"
    assert (saved[-1] / "state.json").is_file()


def tell(tracker: Callback, run: Path, start: int = 0) -> Callbacks:
    """What a run of two updates would tell a tracker."""
    callbacks = Callbacks([tracker], run, {"lr": 0.1, "image_size": (16,)})
    callbacks.start(start, 2)
    for line in LINES:
        callbacks.line(line)
        callbacks.validated(None)  # type: ignore[arg-type]  # a tracker does not look at it
    callbacks.end("finished")
    assert callbacks.each == [tracker]  # it has not failed
    return callbacks


NUMBERS = [
    ({"signals/epoch": 0.0, "signals/heldout_loss": 2.0}, 0),
    ({"step/epoch": 0.5, "step/time": 3.0, "step/loss": 1.5, "step/losses/pixels": 1.5}, 1),
    ({"spike/epoch": 0.5, "spike/z": 9.0}, 1),
]


def test_all_trackers_get_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: dict[str, list[Any]] = {"wandb": [], "trackio": [], "mlflow": []}
    begun: dict[str, Any] = {}

    def init(of: str) -> Any:
        def begin(**given: Any) -> Any:
            begun[of] = given
            note = sent[of].append
            return SimpleNamespace(log=lambda n, step: note((n, step)), finish=lambda **end: begun.update(end))

        return begin

    class Client:
        runs: ClassVar[list[str]] = []

        def get_experiment_by_name(self, name: str) -> None:
            assert name == "unveil"

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, place: str, run_name: str) -> Any:
            self.runs.append(run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            assert run == "r1"
            sent["mlflow"] += [({m[0]: m[1]}, m[3]) for m in metrics] + [dict(params)] * bool(params)

        def update_run(self, run: str, status: str) -> None: ...

        def set_terminated(self, run: str, status: str) -> None:
            begun["mlflow"] = status

    tuples = SimpleNamespace(Param=lambda *a: a, Metric=lambda *a: a)
    modules = {
        "wandb": SimpleNamespace(init=init("wandb"), Settings=dict),
        "trackio": SimpleNamespace(
            init=init("trackio"), log=lambda n, step: sent["trackio"].append((n, step)), finish=lambda: None
        ),
        "mlflow": SimpleNamespace(MlflowClient=Client, entities=tuples),
    }
    monkeypatch.setattr(trackers, "optional", lambda name, needed: modules[name])
    for name in modules:
        tell(trackers.TRACKERS[name](), tmp_path)
    for name in ("wandb", "trackio"):
        assert sent[name][:3] == NUMBERS
        assert begun[name]["config"]["lr"] == 0.1
        assert begun[name]["resume"] == "allow"
    assert begun["exit_code"] == 0
    assert begun["mlflow"] == "FINISHED"
    assert sent["mlflow"][0] == {"lr": "0.1", "image_size": "(16,)"}
    assert sent["mlflow"][1:] == [({k: v}, step) for numbers, step in NUMBERS for k, v in numbers.items()] + [
        ({"step/epoch": 1.0}, 2), ({"step/time": 4.0}, 2),
    ]  # fmt: skip
    kept = json.loads((tmp_path / "trackers.json").read_text())
    first = dict(begun["wandb"])
    tell(trackers.WandB(), tmp_path, start=1)  # a run that is continued is the same one there
    tell(trackers.MLflow(), tmp_path, start=1)
    assert begun["wandb"]["id"] == first["id"] == kept["wandb"]
    assert Client.runs == [tmp_path.name]


def test_tensorboard_has_the_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(trackers.TensorBoard(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/losses/pixels")] == [(1, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("signals/heldout_loss")] == [(0, 2.0)]


def test_wandb_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell(trackers.WandB(), tmp_path)
    wandb.teardown()  # its own process has written all
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"step/losses/pixels" in content
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] in file.name


def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    tell(trackers.MLflow(), tmp_path)
    identity = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(identity, "step/loss")] == [(1, 1.5)]
    run = client.get_run(identity)
    assert (run.info.status, run.data.params["lr"], run.info.run_name) == ("FINISHED", "0.1", tmp_path.name)


def test_trackio_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which is read as it is imported
    pytest.importorskip("trackio")
    tell(trackers.Trackio(), tmp_path)
    files = [*(tmp_path / "trackio").rglob("*.db")]
    assert files
    with sqlite3.connect(files[0]) as opened:
        rows = str([*opened.execute("select * from metrics")])
    assert "step/losses/pixels" in rows


def test_a_tracker_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--log wandb needs a package .*pip install 'unveil\[wandb\]'"):
        unveil.pretrain("mae", data=write_images(tmp_path / "images"), out=tmp_path / "run", log="wandb", **TRAIN)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--log neptune: one of tensorboard, wandb, mlflow, trackio"):
        unveil.pretrain("mae", data=tmp_path / "images", log="neptune", **TRAIN)
