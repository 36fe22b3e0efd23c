"""Cheaper ways to guide masks: what they cost, and how far their masks are the faithful ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unveil
from multimodal import GUIDED, LACKING, batch, build
from unveil.cli import main
from unveil.commands.analyze.masks import FAITHFUL, RANDOM, costs, guidance_of
from unveil.evaluation.analysis.mask_overlap import MaskOverlap, guided_mask, mask_overlaps
from unveil.experiments.bench.contenders import CONTENDERS
from unveil.experiments.bench.flops_and_memory import count_flops
from unveil.experiments.bench.work import Work
from unveil.modeling.types import Layout, Tokens
from unveil.recipes import multimae
from unveil.recipes.registry import build_recipe


def test_overlaps_by_hand():
    layout = Layout({"rgb": slice(0, 4), "depth": slice(4, 8)}, (2, 2))
    missing = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1]]).bool()
    tokens = Tokens(torch.zeros(1, 8, 2), torch.arange(8)[None], layout, missing)
    first = torch.tensor([[1, 1, 1, 0, 1, 1, 0, 1]]).bool()
    second = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1]]).bool()
    result = mask_overlaps(first, second, tokens)
    assert result == {"rgb": MaskOverlap(4, 3, 3, 2), "depth": MaskOverlap(3, 2, 2, 1)}
    both = result["rgb"] + result["depth"] * 2
    assert both == MaskOverlap(10, 7, 7, 4)
    assert both.hidden_in_common == pytest.approx(4 / 7)
    assert both.visible_in_common == 0
    assert both.jaccard == pytest.approx(4 / 10)


@pytest.mark.parametrize("lacks", [{}, LACKING], ids=["whole", "lacking"])
def test_a_guided_run_masks_as_its_faithful_way_does(lacks: dict):
    """To the token: the analysis draws the masks that training does. And no look draws those of random masks."""
    model, on = build(GUIDED, visible=0.15).eval(), batch(present=lacks)
    tokens = model.encoder.embed(on)
    ways = {way.name: way.teacher for way in guidance_of(model)}
    with torch.no_grad():
        observations = {name: teacher.observe(on, tokens, model.encoder) for name, teacher in ways.items()}
        masks = {name: guided_mask(model, on, tokens, observation) for name, observation in observations.items()}
        visible = model.encode_decode(on).mask.visible
        random = build(multimae.recipe, visible=0.15).encode_decode(on).mask.visible
    assert not masks[FAITHFUL].gather(1, visible).any()
    assert not masks[RANDOM].gather(1, random).any()
    for mask in masks.values():
        for name, one in mask_overlaps(masks[FAITHFUL], mask, tokens).items():
            assert one.first == one.second, f"the budget of {name} is the same"


def test_costs_are_those_that_the_bench_counts():
    work = Work("nano", 16, (64,), 1, 0)
    bench = {name: count_flops(CONTENDERS[name], work).flops for name in ("multimae", "multimae-guided", "guided-half")}
    model = build_recipe(multimae.recipe, (), {"size": "nano", "image_size": (64,)}).stages[0].build()
    ways = guidance_of(model)
    step, *looks = costs(model, work.batch("cpu"), ways)
    cost_of = dict(zip((way.name for way in ways), looks, strict=True))
    assert step == bench["multimae"]
    assert step + cost_of[FAITHFUL] == bench["multimae-guided"]
    assert step + cost_of["half resolution"] == bench["guided-half"]
    assert cost_of[RANDOM] == 0
    assert cost_of["layer 1"] < cost_of["layer 4"] < cost_of[FAITHFUL]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guided run on a few scenes, with an averaged student."""
    out = tmp_path_factory.mktemp("masks") / "guided"
    words = ["--data", "scenes:count=12,size=32", "--modalities", "rgb", "depth", "--size", "nano", "--patch", "8"]
    words += ["--image-size", "32", "--epochs", "4", "--batch-size", "8", "--decoder-dim", "16", "--decoder-heads", "2"]
    words += ["--lr", "0.1", "--student", "momentum", "--device", "cpu", "--out", str(out)]
    assert main(["pretrain", "multimae-attention", *words]) == 0
    return out


def test_the_masks_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["analyze", "masks", str(run), "--data", "scenes:count=10,size=32", "--device", "cpu"]) == 0
    assert "above chance" in capsys.readouterr().out
    stored = json.loads((run / "analysis" / "masks.json").read_text())
    ways = {way["name"]: way for way in stored["ways"]}
    assert {"layer 1", "layer 5", "half resolution", "averaged weights", "every 4th step"} < set(ways)
    assert ways[FAITHFUL]["overlap"]["all"] == dict.fromkeys(ways[RANDOM]["overlap"]["all"], 1.0)
    for name in ("all", "rgb", "depth"):
        figures = {way: ways[way]["overlap"][name] for way in ways}
        assert figures[RANDOM]["beyond_chance"] == 0
        assert figures["every 4th step"]["beyond_chance"] == pytest.approx(0.25)
    assert ways[RANDOM]["cost"] == 1
    assert ways["every 4th step"]["cost"] == pytest.approx(1 + (ways[FAITHFUL]["cost"] - 1) / 4)
    page = unveil.report([run]).read_text()
    assert "Cheaper guidance" in page
    assert "Masks in common with full guidance" in page
    again = unveil.analyze_masks(str(run), data="scenes:count=10,size=32", untrained=True, device="cpu")
    assert again["epoch"] == 0
    assert again["ways"] != stored["ways"]


def test_a_run_of_other_targets_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "hog"
    words = ["--data", "scenes:count=12,size=32", "--size", "nano", "--patch", "8", "--image-size", "32"]
    assert main(["pretrain", "maskfeat", *words, "--epochs", "0.5", "--batch-size", "8", "--out", str(out)]) == 0
    assert main(["analyze", "masks", str(out), "--device", "cpu"]) == 2
    assert "predicts more than pixels and classes" in " ".join(capsys.readouterr().err.split())
