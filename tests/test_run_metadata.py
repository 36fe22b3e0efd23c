"""What run.json says of a model: each stage's parameters, its teachers' and its operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from report_fakes import fake_run
from test_cmtmae import make
from unveil.experiments.bench.contenders import CONTENDERS
from unveil.experiments.bench.flops_and_memory import count_flops
from unveil.experiments.bench.work import Work
from unveil.modeling.layers import Positions
from unveil.modeling.types import DEPTH, RGB, SEMSEG
from unveil.recipes import attmask, mae
from unveil.reporting.page import write_report
from unveil.training.run_metadata import flops, guides, model_metadata, stage_lines, trained


@pytest.mark.parametrize("name", ["mae", "cmtmae-stage2", "multimae-guided"])
def test_operations_are_those_of_a_model_made_of_shapes_alone(name: str):
    work = Work("nano", 8, (32,), 1, 0)
    model = CONTENDERS[name].build(work).model
    before = {n: t.clone() for n, t in model.state_dict().items()}
    several = (RGB, DEPTH, SEMSEG) if name.startswith("multimae") else (RGB,)
    assert flops(model, several, (32, 32)) == count_flops(CONTENDERS[name], work).flops
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items()), "nothing is run on the weights"
    assert all(p.grad is None for p in model.parameters())


def numbers(module: torch.nn.Module) -> int:
    tables = sum(submodule.table.numel() for submodule in module.modules() if isinstance(submodule, Positions))
    return sum(t.numel() for t in (*module.parameters(), *module.buffers())) - tables


def test_each_stage_is_told_for_itself():
    recipe = make()
    metadata = model_metadata(recipe, recipe.encoder.modalities)
    first, second = metadata["stages"]
    models = [stage.build() for stage in recipe.stages]
    held = [t for m in models for t in (*m.parameters(), *m.buffers())]
    assert not any(t.is_meta for t in held), "what stages share is as it was"
    assert [s["epochs"] for s in (first, second)] == [100, 700]
    assert first["trained"] == sum(metadata["parameters"].values()) == trained(models[0])
    assert second["trained"] - first["trained"] == 17 * 24, "the head that guesses the student"
    assert first["guides"] == numbers(models[0].teachers["teacher"].encoder)
    assert second["guides"] - first["guides"] == numbers(models[1].teachers["student"].average.copy)
    assert second["flops"] > first["flops"]
    lines = stage_lines(metadata)
    assert lines[0].startswith("  stage 1 of 2, 100 epochs: ")
    assert "of teachers; a step takes " in lines[1]


def test_a_single_stage_has_no_number_and_no_teacher_none():
    (line,) = stage_lines(model_metadata(make(mae), make(mae).encoder.modalities))
    assert "stage" not in line
    assert "teachers" not in line
    assert guides(make(mae).stages[0].build()) == 0
    assert guides(make(attmask).stages[0].build()) > 0


def test_what_needs_numbers_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    recipe = make(mae)
    model = recipe.stages[0].build()

    def score(tokens: object, observations: object, batch: object) -> Tensor:
        return torch.rand(1, 24, device="cpu") + tokens.ids  # type: ignore[attr-defined]

    object.__setattr__(model.masker, "score", score)
    object.__setattr__(recipe.stages[0], "build", lambda: model)
    metadata = model_metadata(recipe, recipe.encoder.modalities)
    assert metadata["stages"][0]["flops"] is None
    assert "GFLOPs" not in stage_lines(metadata)[0]


def test_the_report_tells_each_stage(tmp_path: Path):
    stages = [
        {"epochs": 10, "trained": 12_000_000, "guides": 86_000_000, "flops": 8_100_000_000},
        {"epochs": 70, "trained": 12_400_000, "guides": 0, "flops": None},
    ]
    run = fake_run(tmp_path / "run", picture_epochs=1, model={"stages": stages})
    page = write_report([run]).read_text()
    first = "10 epochs: 12 M parameters trained, 86 M of teachers, 8.1 GFLOPs per image"
    assert f"{first}; 70 epochs: 12.4 M parameters trained<" in page
    strange = fake_run(tmp_path / "strange", picture_epochs=1, model={"stages": [3, {"flops": "many"}]})
    assert write_report([strange]).exists()
