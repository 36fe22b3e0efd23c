"""Training that cannot go on: back to a good checkpoint with half the rate, twice, then an end with a name and a way
out. Faults are injected into input, activations, gradients, moments; rates that are too high are given as flags."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unveil
from tiny_runs import PER_EPOCH, TRAIN, Killed, Place, at_steps, facts, interrupt, journal, rows, weights
from unveil.cli import main
from unveil.cli.commands import UNSOUND
from unveil.modeling.masked_model import MaskedModel
from unveil.modeling.optim import OptimizerName, learning_rate
from unveil.modeling.types import Batch
from unveil.reporting.lamps import last_lines
from unveil.reporting.run_record import read_run
from unveil.runs.checkpoint import read_latest
from unveil.training import ladder
from unveil.training.health import MAX_SKIPPED
from unveil.training.trainer import Trainer

LONG = (*TRAIN, "--epochs", "16", "--device", "cpu", "--workers", "1", "--compile", "off", "--val-every", "10")
STEPS, GOOD, BAD = 48, 20, 22  # of these runs; the step that is gone back to; the first step that is spoilt
NOTICED = BAD - 1 + MAX_SKIPPED
BLOCK = "encoder.blocks.1.mlp"


class Fault:
    """Spoils the steps from `BAD` on, until the run has gone back (or, `forever`, all of them)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path, forever: bool = False):
        self.run, self.forever, self.step = run, forever, 0
        before, update = MaskedModel.before_step, Trainer.update

        def before_step(model: MaskedModel, step: int, progress: float) -> None:
            self.step = step + 1
            before(model, step, progress)

        def updated(trainer: Trainer, *words: Any) -> Any:
            if self.is_on and not self.has(trainer.model):
                self.spoil(trainer)
            return update(trainer, *words)

        monkeypatch.setattr(MaskedModel, "before_step", before_step)
        monkeypatch.setattr(Trainer, "update", updated)

    @property
    def is_on(self) -> bool:
        is_training = self.step >= BAD and (self.run / "run.json").exists()
        return is_training and (self.forever or not facts(self.run).get("returns"))

    def has(self, model: nn.Module) -> bool:
        return getattr(model, "spoilt", False)

    def spoil(self, trainer: Trainer) -> None:
        object.__setattr__(trainer.model, "spoilt", True)
        self.inject(trainer)

    def inject(self, trainer: Trainer) -> None:
        raise AssertionError


class Activation(Fault):
    def inject(self, trainer: Trainer) -> None:
        module = trainer.model.get_submodule(BLOCK)
        module.register_forward_hook(lambda m, words, output: output * torch.inf if self.is_on else None)


class Gradient(Fault):
    def inject(self, trainer: Trainer) -> None:
        def spoil(module: nn.Module, words: Any, output: Tensor) -> None:
            if self.is_on and output.requires_grad:
                output.register_hook(lambda gradient: gradient * torch.nan)

        trainer.model.get_submodule(BLOCK).register_forward_hook(spoil)


class Moments(Fault):
    """One number of the optimiser's memory: the weight is lost with the update, and the loss with the step after."""

    def inject(self, trainer: Trainer) -> None:
        weight = trainer.model.get_parameter(f"{BLOCK}.0.weight")
        moment = next(m for name, m in trainer.optimizer.state[weight].items() if name != "step")
        moment[0, 0] = torch.nan


class Images(Fault):
    """The images of a step: the one fault that a step which is compiled already sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path):
        super().__init__(monkeypatch, run)
        spoil_images(monkeypatch, lambda: self.is_on)

    def inject(self, trainer: Trainer) -> None:
        """Batches are spoilt where they are split."""


def spoil_images(monkeypatch: pytest.MonkeyPatch, is_on: Callable[[], bool]) -> None:
    """Make the second image of each batch of training NaN while `is_on` says so."""
    split = Batch.split

    def spoilt(batch: Batch, size: int) -> tuple[Batch, ...]:
        if batch.step_key is not None and is_on():  # in training
            batch.maps["rgb"] = batch.maps["rgb"].float().index_fill(0, torch.tensor([1]), torch.nan)
        return split(batch, size)

    monkeypatch.setattr(Batch, "split", spoilt)


WHERE = {
    Activation: f"in the output of {BLOCK}",
    Gradient: f"in the gradient at the output of {BLOCK}",
    Moments: f"in the weights {BLOCK}.0.weight, before the step",
}


def is_finite(run: Path) -> bool:
    latest, _ = read_latest(run)
    assert latest
    return all(bool(t.isfinite().all()) for t in (*latest.model.values(), *latest.optimizer.values()))


@pytest.mark.parametrize("kind", [Activation, Gradient, pytest.param(Moments, marks=pytest.mark.slow)])
def test_after_twenty_refused_updates_it_goes_back_with_half_the_rate(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys, kind: type[Fault]
):
    kind(monkeypatch, place.run)
    assert place.pretrain(*LONG) == 0
    shown = capsys.readouterr()
    noticed = NOTICED + (kind is Moments)
    (entry,) = facts(place.run)["returns"]
    assert (entry["step"], entry["to"]) == (noticed, GOOD)
    assert (entry["where"], entry["precision"]) == (WHERE[kind], "float32")
    assert len(entry["images"]) == 10
    assert f"step {noticed}: 20 updates in a row were not finite; the first number that is not finite" in shown.err
    assert f"{WHERE[kind]}, in float32; images of the batch: " in shown.err
    assert f"going back to step {GOOD} with half the rate (1 of 2)" in shown.err
    assert (
        f"optimisation: unstable. Training went back once (from step {noticed} to {GOOD}), each time with" in shown.out
    )
    lines = journal(place.run, "step")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in journal(place.run, "return")] == [GOOD]
    assert lines[-1]["skipped"] == 0
    assert is_finite(place.run)
    rates = [line["lr"] for line in lines]
    planned = [learning_rate(step, STEPS, PER_EPOCH, 0.05 * 10 / 256, 0.0) for step in range(STEPS)]
    assert rates == [*planned[:GOOD], *(rate / 2 for rate in planned[GOOD:])]
    before = {p: p.read_bytes() for p in (place.run / "replay").rglob("*.safetensors")}
    result = unveil.replay(place.run, trust=True, device="cpu")
    assert {p: p.read_bytes() for p in (place.run / "replay").rglob("*.safetensors")} == before
    assert result.step == noticed
    moment = f"in the weights {BLOCK}.0.weight, before the step"
    assert result.finding.where == (moment if kind is Moments else "nowhere when the step was repeated")


@pytest.mark.parametrize(
    "words",
    [
        ("--optimizer", "muon", "--micro-batch", "4"),
        ("--optimizer", "sgd", "--stages", "2"),
        ("--precision", "bf16", "--clip", "1"),
        pytest.param(("--compile", "on"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_run_that_went_back_and_was_stopped_ends_with_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    fault = (Images if "--compile" in words else Activation)(monkeypatch, place.run)
    assert place.pretrain(*LONG, *words) == 0
    whole = weights(place.run, STEPS)
    assert len(facts(place.run)["returns"]) == 1
    place.run.rename(place.path / "whole")
    fault.step = 0
    at_steps(monkeypatch, [BAD + 3, NOTICED + 3], interrupt)
    assert place.pretrain(*LONG, *words) == 130  # while updates are refused
    assert place.pretrain(*LONG, *words) == 130  # after it went back
    assert place.pretrain(*LONG, *words) == 0
    assert weights(place.run, STEPS) == whole
    assert rows(place.run) == rows(place.path / "whole")
    assert facts(place.run)["returns"][0]["to"] == facts(place.path / "whole")["returns"][0]["to"]


@pytest.mark.parametrize("died", ["_remove_later", "after"])
def test_a_process_that_dies_while_it_goes_back_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, died: str
):
    Activation(monkeypatch, place.run)
    assert place.pretrain(*LONG, "--save-minutes", "0") == 0
    whole = weights(place.run, STEPS)
    place.run.rename(place.path / "whole")
    remove = ladder._remove_later

    def dying(*words: Any) -> None:
        if died == "after":
            remove(*words)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ladder, "_remove_later", dying)
        with pytest.raises(Killed):
            place.pretrain(*LONG, "--save-minutes", "0")
    assert place.pretrain(*LONG, "--save-minutes", "0") == 0
    assert weights(place.run, STEPS) == whole
    assert len(journal(place.run, "return")) == len(facts(place.run)["returns"]) == 1


def test_a_fault_that_stays_ends_with_its_place_the_good_weights_and_a_command(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys
):
    with monkeypatch.context() as patch:
        Activation(patch, place.run, forever=True)
        assert place.pretrain(*LONG) == UNSOUND
    error = capsys.readouterr().err
    assert error.count("going back to step") == 2
    assert "error: training diverged at step 41: 20 updates in a row were not finite" in error
    assert (
        f"the first number that is not finite arose in the output of {BLOCK}, in float32; images of the batch:" in error
    )
    assert "the rate was halved 2 times; the newest weights are those of step 20" in error
    latest, _ = read_latest(place.run)
    assert latest
    assert latest.state["step"] == facts(place.run)["last_checkpoint"] == GOOD
    assert facts(place.run)["status"] == "failed"
    (command,) = [line.removeprefix("try: ") for line in error.splitlines() if line.startswith("try: ")]
    assert main(shlex.split(command)[1:]) == 0
    assert facts(place.path / "run-2")["given"]["lr"] == pytest.approx(0.05 / 8, rel=0.02)


def test_images_that_are_not_finite_are_named(place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
    spoil_images(monkeypatch, lambda: True)
    assert place.pretrain(*LONG) == UNSOUND
    error = capsys.readouterr().err
    entry = facts(place.run)["returns"][0]
    assert (entry["to"], entry["where"]) == (0, f"in the input rgb of {entry['images'][1]}")
    assert "try: repair or leave out those images" in error
    assert "there are no weights from before it" in error


@pytest.mark.parametrize("every", [3, 2])
def test_refused_updates_that_are_not_in_a_row_are_no_success(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys, every: int
):
    """Two thirds of them, or half."""
    update, count = Trainer.update, iter(range(10**6))

    def spoilt(trainer: Trainer, batch: Any, lr: float) -> Any:
        if next(count) % every:
            batch.maps["rgb"] = batch.maps["rgb"].float() * torch.nan
        return update(trainer, batch, lr)

    monkeypatch.setattr(Trainer, "update", spoilt)
    assert place.pretrain(*LONG, "--epochs", "10") == UNSOUND
    assert f"{30 * (every - 1) // every} of 30 updates were skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rate_that_is_far_too_high_ends_with_a_command_that_works(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "mae --data scenes:count=40,size=32 --size nano --image-size 32 --patch 8 --batch-size 8 --threads 1"
    words += " --workers 1 --decoder-dim 16 --decoder-depth 1 --decoder-heads 2 --epochs 20 --precision bf16 --out run"
    assert main(["pretrain", *words.split(), "--lr", "1e8"]) == UNSOUND
    error = capsys.readouterr().err
    assert "training diverged at step 22: 20 updates in a row were not finite" in error
    assert "fault of unveil" not in error
    (command,) = [line.removeprefix("try: ") for line in error.splitlines() if line.startswith("try: ")]
    assert main(shlex.split(command)[1:]) == 0
    assert facts(tmp_path / "run-2")["status"] == "finished"
    assert main(["replay", "run"]) == 0
    assert "loss pixels: " in capsys.readouterr().out


def test_a_short_run_that_diverged_says_so_and_signals_that_cannot_be_computed_end_nothing(place: Place, capsys):
    assert place.pretrain(*TRAIN, "--lr", "1e12", "--warmup-epochs", "0", "--device", "cpu") == UNSOUND
    assert facts(place.run)["status"] == "finished"
    assert "optimisation: unstable." in capsys.readouterr().out
    last = journal(place.run, "signals")[-1]
    assert last["rankme"] is None
    assert "rankme" in last["not_computable"]
    assert main(["report", str(place.run)]) == 0
    assert "not computable" in (place.run / "report.html").read_text()


def test_a_spike_is_in_the_last_lines_and_in_the_metrics(place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
    update = Trainer.update

    def spiked(trainer: Trainer, batch: Any, lr: float) -> Any:
        step = int(trainer.optimizer.state[trainer.parameters[0]].get("step", 0))
        result = update(trainer, batch, lr)
        if step == 40:
            result.losses["pixels"].mul_(30)  # type: ignore[attr-defined]
        return result

    monkeypatch.setattr(Trainer, "update", spiked)
    assert place.pretrain(*LONG, "--lr", "1e-3") == 0
    assert "spiked 1 time in 48 updates, most at step 41 (the loss, robust z-score" in capsys.readouterr().out
    (spike,) = journal(place.run, "spike")
    assert spike["step"] == 41
    assert journal(place.run, "step")[-1]["spikes"] == 1
    lines = [json.loads(line) for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    many = [{**line, "spikes": 3} if line["kind"] == "step" else line for line in lines]
    (place.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    assert any(
        "optimisation: unstable. The loss or the gradient norm spiked 3 times" in s
        for s in last_lines(read_run(place.run))
    )


def test_replay_without_a_recorded_step_or_with_other_images_says_so(place: Place, whole: Callable[..., Path], capsys):
    assert main(["replay", str(whole(*TRAIN))]) == 2
    assert "has recorded no step: no update was refused" in capsys.readouterr().err


def test_the_optimizers_that_are_tested_are_all() -> None:
    assert set(OptimizerName.__args__) == {"adamw", "muon", "sgd"}
