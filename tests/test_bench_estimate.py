"""Memory by formula, held against what a step on the CPU keeps, and the estimates made of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.cli import main
from unveil.experiments.bench.contenders import CONTENDERS
from unveil.experiments.bench.estimate import (
    GPUS,
    MFU,
    activation_bytes,
    bench_estimate,
    estimate_step,
    hours_on,
    state_bytes,
)
from unveil.experiments.bench.flops_and_memory import count_flops
from unveil.experiments.bench.timing import Stepper
from unveil.experiments.bench.work import Work
from unveil.modeling import layers

CPU = torch.device("cpu")
TOLERANCE = 0.1  # of the measured bytes


def kept_bytes(name: str, work: Work, precision: str) -> int:
    """Bytes of the storages that a forward pass keeps for the backward pass, but for weights and their copies."""
    model, batch = CONTENDERS[name].build(work).train(), work.batch(CPU)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    shapes = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.ndim == 2}
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        is_copy = tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if place not in own and not is_copy:
            storages[place] = tensor  # held, so that its place is not used again
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["mae", "inter-block"])
def test_activations_are_those_that_a_step_keeps(name: str, precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "SHORT", 0)  # fused attention, as on a GPU
    work = Work("tiny", 8, (96,), 2, 0)
    measured = kept_bytes(name, work, precision)
    assert work.batch_size * activation_bytes(name, work, precision) == pytest.approx(measured, rel=TOLERANCE)


def test_states_are_weights_gradients_and_moments():
    work = Work("nano", 8, (32,), 2, 0)
    stepper = Stepper(CONTENDERS["mae"].build(work), work.batch(CPU), CPU)
    stepper.step("float32")
    trained = [p for p in stepper.model.parameters() if p.requires_grad]
    moments = [t for state in stepper.optimizer.state.values() for t in state.values() if t.ndim]
    held = sum(2 * p.nbytes for p in trained) + sum(t.nbytes for t in moments)  # a gradient is as large as its weight
    assert state_bytes(count_flops(CONTENDERS["mae"], work).parameters, "float32") == held


def test_an_estimate_follows_from_the_data_sheet():
    work = Work("base", 16, (224,), 1, 0)
    cost = count_flops(CONTENDERS["mae"], work)
    estimate = estimate_step("mae", work, cost, "H100", 0.4, None)
    assert estimate.images_per_second == pytest.approx(0.4 * 989e12 / cost.flops)
    assert estimate.gigabytes <= 0.9 * GPUS["H100"].gigabytes
    twice = replace(estimate, batch_size=2 * estimate.batch_size).batch_size
    with pytest.raises(ValueError, match="fit on one H100, fewer than"):
        estimate_step("mae", work, cost, "H100", 0.4, twice)


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "estimate", "--size", "tiny", "--gpu", "A100", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["contender"] for row in rows] == ["mae", "inter-block"]
    assert main(["bench", "estimate", "--size", "tiny", "--gpu", "A100"]) == 0
    assert "not measured" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mfu is a share"):
        bench_estimate(mfu=2.0)


def test_the_hours_of_a_study_on_a_gpu_are_its_flops_at_a_share_of_the_peak():
    assert hours_on("H100", 989e12 * 3600, mfu=1.0) == pytest.approx(1.0)
    assert hours_on("A100", 312e12 * 3600) == pytest.approx(1 / MFU)
