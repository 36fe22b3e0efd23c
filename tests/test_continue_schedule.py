"""Continuing a training: the learning rate is that of the first schedule's tail, ten times it, or a new one's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import unveil
from tiny_runs import write_images, write_recipe
from unveil.modeling.encoder import Encoder
from unveil.modeling.optim import Optim
from unveil.modeling.types import RGB
from unveil.recipes.recipe import Hyperparameters, Recipe, Stage, View
from unveil.runs.checkpoint import read_latest
from unveil.training.init_from import check_schedule, resume_schedule, schedule_lines, schedule_metadata, schedule_of

QUICK = {"workers": 1, "compile": "off", "device": "cpu", "epochs": 2.0, "val_every": 99.0}


def rates(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["kind"] == "step"]


def test_the_published_tail():
    """1600 of 1700 epochs, 40 of warm-up: it begins at 0.9 % of the peak of 8e-4."""
    optim = Optim(1e-4, 2048, 40, trained_epochs=1600)
    assert optim.peak_lr == pytest.approx(8e-4)
    assert optim.rate(0, 100, 1) == pytest.approx(7.14e-6, rel=1e-3)
    assert optim.rate(0, 100 * 625, 625) == optim.rate(0, 100, 1), "whatever the steps of an epoch"
    assert optim.rate(100, 100, 1) == pytest.approx(0, abs=1e-12)
    assert Optim(1e-4, 2048, 20).rate(10, 100, 1) == pytest.approx(4e-4), "a new schedule warms up"


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("first")
    images, recipe = str(write_images(folder / "images")), write_recipe(folder)
    run = unveil.pretrain(recipe, data=images, out=str(folder / "run"), lr=0.064, warmup_epochs=0.5, **QUICK)
    return run, images, recipe


@pytest.mark.parametrize(("schedule", "factor"), [("tail", 1), ("x10", 10)])
def test_a_run_resumes_its_own_schedule(first, tmp_path: Path, capsys, schedule: str, factor: int):
    run, images, recipe = first
    second = unveil.pretrain(
        recipe, data=images, out=str(tmp_path / "second"), init_from=str(run), continue_schedule=schedule, **QUICK
    )
    optim = json.loads((second / "run.json").read_text())["optim"]
    assert (optim["trained_epochs"], optim["warmup_epochs"]) == (2.0, 0.5)
    assert optim["peak_lr"] == pytest.approx(factor * 0.064 * optim["batch_size"] / 256)
    per_epoch = 38 // optim["batch_size"]
    steps = 2 * per_epoch
    whole = Optim(optim["lr"], optim["batch_size"], 0.5, lr_factor=factor)
    assert rates(second) == pytest.approx([whole.rate(steps + i, 2 * steps, per_epoch) for i in range(steps)])
    printed = capsys.readouterr()
    assert "which resumes the cosine schedule at epoch 2 of 4" in printed.out + printed.err
    assert "Schedule of the learning rate" in unveil.report([second]).read_text()
    assert "Schedule of the learning rate" not in unveil.report([run]).read_text(), "it goes on with nothing"

    third = unveil.pretrain(
        recipe, data=images, out=str(tmp_path / "third"), init_from=str(second), continue_schedule="tail", **QUICK
    )
    assert json.loads((third / "run.json").read_text())["optim"]["trained_epochs"] == 4.0


@pytest.mark.parametrize(("schedule", "before"), [("tail", True), ("x10", True), ("restart", False)])
def test_the_optimiser_of_a_continued_run_goes_on_with_its_moments(first, tmp_path: Path, capsys, schedule, before):
    """From its own checkpoint and on its own schedule; a new schedule, and weights without moments, start afresh."""
    run, images, recipe = first
    given = {"init_from": str(run), "continue_schedule": schedule, "out": str(tmp_path / "second")}
    first_steps = read_latest(run)[0].state["step"]
    second = unveil.pretrain(recipe, data=images, **given, **QUICK)
    saved = read_latest(second)[0]
    counts = {n: int(value) for n, value in saved.optimizer.items() if n.endswith(":step")}
    assert set(counts.values()) == {saved.state["step"] + first_steps * before}
    assert len(counts) == len(read_latest(run)[0].optimizer) // 3, "of every parameter"
    said = capsys.readouterr()
    assert (
        f"the optimiser's moments of {len(counts)} of {len(counts)} parameters go on" in said.out + said.err
    ) == before

    weights = str(next(Path(run).glob("checkpoints/*/model.safetensors")))
    third = unveil.pretrain(
        recipe,
        data=images,
        **{**given, "init_from": weights, "out": str(tmp_path / "third")},
        **({"init_epoch": 2.0} if before else {}),
        **QUICK,
    )
    assert {int(v) for n, v in read_latest(third)[0].optimizer.items() if n.endswith(":step")} == {saved.state["step"]}
    said = capsys.readouterr()
    assert ("the optimiser's moments start fresh" in said.out + said.err) == before


@pytest.mark.parametrize("factor", [1, 10])
def test_the_cosine_ends_at_min_lr(factor: int):
    """MAE's formula: min_lr + (lr - min_lr) (1 + cos) / 2 after the warm-up, which starts from 0."""
    encoder = Encoder((RGB,), (8,), 4, 8, 1, 1)
    built = Recipe(encoder, (Stage(lambda: None, 100),), Hyperparameters(lr=1e-4, min_lr=1e-5).optim(), View((8, 8)))
    assert built.optim.rate(0, 100, 1) == 0
    assert built.optim.rate(40, 100, 1) == pytest.approx(1.6e-3)
    assert built.optim.rate(70, 100, 1) == pytest.approx((1.6e-3 + 1e-5) / 2)
    assert schedule_of(built)[-1] == (100, pytest.approx(1e-5))
    schedule = {1: "tail", 10: "x10"}[factor]
    tail = resume_schedule(built, schedule, 100)
    assert schedule_of(tail)[-1] == (200, pytest.approx(1e-5))
    middle = built.optim.rate(70, 100, 1)
    assert tail.optim.rate(20, 100, 1) == pytest.approx(1e-5 + (factor * 1.6e-3 - 1e-5) / 2), "120 is half of 40 to 200"
    whole = schedule_metadata(tail, schedule)["whole"]
    assert whole[120] == (120, pytest.approx(middle))
    stages = replace(built, stages=(Stage(lambda: None, 50), Stage(lambda: None, 50)), restart=True)
    assert dict(schedule_of(stages))[100] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("warmup", "change", "warns"),
    [
        (100, {}, True),
        (150, {"trained_epochs": 100.0}, False),  # it was before, or ends in this run
        (40, {}, False),
        (40, {"restart": True}, True),  # of two stages of 50 and 30 epochs
        (20, {"restart": True}, False),
    ],
)
def test_a_warm_up_that_outlasts_the_run_is_a_warning(capsys, warmup: float, change: dict, warns: bool):
    encoder = Encoder((RGB,), (8,), 4, 8, 1, 1)
    optim = Optim(warmup_epochs=warmup, trained_epochs=change.pop("trained_epochs", 0.0))
    stages = (Stage(lambda: None, 50), Stage(lambda: None, 30)) if change else (Stage(lambda: None, 100),)
    check_schedule(Recipe(encoder, stages, optim, View((8, 8)), **change))
    said = capsys.readouterr()
    words = f"warning: the learning rate warms up for {warmup} epochs and the"
    assert (words in said.out + said.err) == warns
    assert ("give fewer --warmup-epochs, or more --epochs" in said.out + said.err) == warns


def test_a_rate_that_would_end_above_its_peak_is_an_error():
    encoder = Encoder((RGB,), (8,), 4, 8, 1, 1)
    built = Recipe(encoder, (Stage(lambda: None, 100),), Optim(min_lr=0.1), View((8, 8)))
    with pytest.raises(ValueError, match=r"--min-lr 0.1: a rate of at most the peak is needed, 0.0024"):
        check_schedule(built)


def test_a_continued_run_keeps_its_min_lr(first, tmp_path: Path):
    run, images, recipe = first
    with_end = (
        Path(recipe)
        .read_text()
        .replace("clip: f", "min_lr: float = 0.0, clip: f")
        .replace("=clip", "=clip, min_lr=min_lr")
    )
    recipe = str(tmp_path / "own.py")
    Path(recipe).write_text(with_end)
    words = {"continue_schedule": "tail", **QUICK}
    second = unveil.pretrain(recipe, data=images, init_from=str(run), min_lr=1e-6, out=str(tmp_path / "2"), **words)
    third = unveil.pretrain(recipe, data=images, init_from=str(second), out=str(tmp_path / "3"), **words)
    assert json.loads((third / "run.json").read_text())["optim"]["min_lr"] == 1e-6


def test_a_restart_is_a_new_schedule(first, tmp_path: Path):
    run, images, recipe = first
    again = unveil.pretrain(recipe, data=images, out=str(tmp_path / "again"), init_from=str(run), lr=0.064, **QUICK)
    optim = json.loads((again / "run.json").read_text())["optim"]
    assert optim["trained_epochs"] == 0
    assert rates(again)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continue_schedule": "tail"}, "the schedule of --init-from; give both"),
        ({"continue_schedule": "tails", "init_from": "x"}, "one of restart, tail, x10"),
        ({"init_epoch": 3.0, "init_from": "x"}, "give one of them with it"),
        ({"init_epoch": -3.0, "init_from": "x", "continue_schedule": "tail"}, "--init-epoch -3.0: a number"),
    ],
    ids=lambda x: str(x)[:30],
)  # fmt: skip
def test_what_does_not_go_together(first, options: dict, message: str):
    _, images, recipe = first
    with pytest.raises(ValueError, match=message):
        unveil.pretrain(recipe, data=images, **options)


def test_the_length_of_the_first_training_is_given_where_it_is_not_known(first, tmp_path: Path):
    run, images, recipe = first
    weights = next(Path(run).glob("checkpoints/*/model.safetensors"))
    words = {"init_from": str(weights), "continue_schedule": "tail", "out": str(tmp_path / "run"), **QUICK}
    with pytest.raises(ValueError, match=r"is not known; give its epochs with --init-epoch, such as 1600"):
        unveil.pretrain(recipe, data=images, **words)
    second = unveil.pretrain(recipe, data=images, init_epoch=6.0, **words)
    optim = json.loads((second / "run.json").read_text())["optim"]
    assert optim["trained_epochs"] == 6.0
    assert optim["lr"] == 0.05, "the paper's rate, not one that is fitted"


def test_the_schedule_is_drawn():
    encoder = Encoder((RGB,), (8,), 4, 8, 1, 1)
    built = Recipe(encoder, (Stage(lambda: None, 100),), Optim(warmup_epochs=20), View((8, 8)))
    words, drawn = schedule_lines(built)
    assert words == "  learning rate: starts at 0.00e+00, peak 2.40e-03, ends at 0.00e+00"
    bars = drawn.strip()
    assert (bars[0], bars[-1], max(bars)) == ("▁", "▁", "█")
    assert bars.index("█") == pytest.approx(8, abs=1)


def test_the_schedule_is_kept_for_the_report():
    encoder = Encoder((RGB,), (8,), 4, 8, 1, 1)
    built = Recipe(encoder, (Stage(lambda: None, 100),), Optim(1e-4, 2048, 40), View((8, 8)))
    assert set(schedule_metadata(built, "restart")) == {"run"}
    for schedule, factor in (("tail", 1), ("x10", 10)):
        metadata = schedule_metadata(resume_schedule(built, schedule, 1600), schedule)
        epochs, rates = zip(*metadata["whole"], strict=True)
        assert (epochs[0], epochs[-1], rates[0]) == (0, 1700, 0)
        assert max(rates) == pytest.approx(8e-4, rel=0.01), "of the first training, whatever this run makes of it"
        assert metadata["run"][0] == (1600, pytest.approx(factor * 7.14e-6, rel=1e-3))
        assert metadata["run"][-1] == (1700, pytest.approx(0, abs=1e-12))


def test_the_schedule_of_stages_that_begin_anew():
    encoder = Encoder((RGB,), (8,), 4, 8, 1, 1)
    stages = (Stage(lambda: None, 50), Stage(lambda: None, 50))
    built = Recipe(encoder, stages, Optim(warmup_epochs=10), View((8, 8)), restart=True)
    rates = dict(schedule_of(built))
    assert (rates[0], rates[50]) == (0, 0)
    assert rates[10] == rates[60] == built.optim.peak_lr
