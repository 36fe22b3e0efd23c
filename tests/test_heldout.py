"""Held-out losses: under random masks that all runs share, and under a run's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multimodal import GUIDED, LACKING, batch, build
from unveil.evaluation.protocols.heldout import Heldout
from unveil.evaluation.reconstructors import ModelReconstructor, TrainingMean
from unveil.evaluation.results import table, write_results
from unveil.evaluation.run import run_protocols
from unveil.evaluation.types import Context, HeldOutSamples, Masks, Score
from unveil.experiments.study import Arm, Scale, Setting, Study
from unveil.experiments.study.jobs import expand
from unveil.modeling.masking import ByModality, DirichletBudget, Uniform


def samples(lacks: dict | None = None) -> HeldOutSamples:
    made = batch(12, present={n: known.repeat(3) for n, known in (lacks or {}).items()})
    return HeldOutSamples("scenes", None, lambda: iter([made[:8], made[8:]]), len(made))


def heldout(model: torch.nn.Module, lacks: dict | None = None) -> Score:
    return Heldout().run(ModelReconstructor(model), samples(lacks), Context())


@pytest.mark.parametrize("lacks", [{}, LACKING], ids=["whole", "lacking"])
def test_the_losses_of_random_masks_are_those_of_training(lacks: dict):
    """MultiMAE's own masks are the common random ones, to the token; and the loss is the mean over samples."""
    model = build(visible=0.15).eval()
    result = heldout(model, lacks)
    assert result.metrics["loss_own_masks"] == result.metrics["loss_random_masks"]
    made = batch(12, present={n: known.repeat(3) for n, known in lacks.items()})
    with torch.no_grad():
        losses = {name: (total / count).item() for name, (total, count) in model(made).items()}
    assert result.metrics["loss_own_masks"] == pytest.approx(sum(losses.values()), rel=1e-5)
    assert {name: own["loss_own_masks"] for name, own in result.details.items()} == pytest.approx(losses, rel=1e-5)


def test_guided_runs_share_the_random_masks_and_have_their_own():
    made = batch()
    low, high = (build(GUIDED, draw=draw, predicted=0.25).eval() for draw in ("low", "hard"))
    result = heldout(low), heldout(high)
    assert result[0].metrics["loss_random_masks"] == result[1].metrics["loss_random_masks"], "the weights are the same"
    assert result[0].metrics["loss_own_masks"] != result[1].metrics["loss_own_masks"]
    own = ModelReconstructor(high).forward(made, Masks.OWN).mask
    assert torch.equal(own.visible, high.encode_decode(made).mask.visible)
    assert own.predicted.shape[1] == 48 - own.visible.shape[1], "all that is hidden is asked for"
    common = replace(high.masker, score=DirichletBudget(ByModality(Uniform())))
    shared = ModelReconstructor(low).forward(made, Masks.RANDOM).mask.visible
    assert torch.equal(shared, high.encode_decode(made, common).mask.visible)


def test_the_table_has_both_beside_the_mean_and_the_file_has_each_part(tmp_path: Path):
    model = build().eval()
    mean = TrainingMean(ModelReconstructor(model), lambda: iter([batch()]))
    models = {"this run": ModelReconstructor(model), "training mean": mean}
    (result,) = run_protocols({"heldout": Heldout()}, models, samples())
    assert result.baselines["training mean"].keys() == result.metrics.keys()
    assert "heldout loss random masks" in table([result])
    assert "heldout loss own masks" in table([result])
    (file,) = write_results(tmp_path, [result])
    assert json.loads(file.read_text())["details"] == result.details
    assert result.details["rgb"].keys() == result.metrics.keys()


def test_a_run_of_features_has_no_such_loss():
    model = build()
    model.objectives = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="predicts features only"):
        heldout(model)


def test_a_study_gives_each_protocol_the_maps_that_it_needs(tmp_path: Path):
    """k-NN reads pictures; held-out losses all maps, of scenes that the run has not seen; the user's test images are
    labelled only."""
    at = Scale((Setting("s", "scenes:count=9", test_data="scenes:count=4"),), (0,), {"knn": {}, "heldout": {}})
    study = Study("?", (Arm("random", "multimae", {"epochs": 1}),), "random", {"cpu": at})
    (job,) = expand(study, "cpu", tmp_path)
    assert [(task["protocol"], task["data"], task["test_data"]) for task in job.evaluate] == [
        (["knn"], f"{tmp_path}/scenes/count-9/rgb", f"{tmp_path}/scenes/count-4/rgb"),
        (["heldout"], f"{tmp_path}/scenes/count-9", f"{tmp_path}/scenes/count-4"),
    ]
    own = replace(at, settings=(Setting("s", "folder", labelled="classes", test_data="tested"),))
    (job,) = expand(replace(study, scales={"cpu": own}), "cpu", tmp_path)
    assert [(task["data"], task["test_data"]) for task in job.evaluate] == [
        ("classes", "tested"),
        ("folder", None),
    ]
