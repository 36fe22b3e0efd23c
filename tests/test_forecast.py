"""Power laws through curves of accuracy: what they say of later training, on made curves and on a recorded one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unveil
from report_fakes import fake_run
from unveil.cli import main
from unveil.reporting.forecast import FURTHEST, Curve, fit
from unveil.reporting.journal import Step
from unveil.reporting.lamps import lamps
from unveil.reporting.outlook import all_curves, before_decay, how_long
from unveil.reporting.page import write_report
from unveil.reporting.run_record import Evaluation, RunRecord, read_run
from unveil.training.loop import _steps_to_save

ERROR = 0.005


def law(updates, floor: float = 0.4, scale: float = 0.6, exponent: float = 0.3, unit: float = 100.0):
    """An accuracy that follows a power law."""
    return 1 - floor - scale * (np.asarray(updates, float) / unit) ** -exponent


def noisy(updates, seed: int, **options: float) -> Curve:
    """Points of one, each with an error of its own."""
    noise = ERROR * np.random.default_rng(seed).standard_normal(len(updates))
    return Curve(updates, (law(updates, **options) + noise).tolist(), [ERROR] * len(updates))


POINTS = (125, 250, 500, 1000, 1500, 2000)


@pytest.mark.parametrize("exponent", [0.15, 0.3, 0.6])
def test_the_intervals_hold_what_comes(exponent):
    """Of 60 curves that are cut off, nine tenths of the accuracies at 4 times the updates are in the interval."""
    inside, widths, reached = [], [], []
    for seed in range(60):
        laws = fit(noisy(POINTS, seed, exponent=exponent))
        assert laws is not None
        ahead = laws.at(8000)
        noise = ERROR * np.random.default_rng(1000 + seed).standard_normal()
        inside.append(ahead.low <= law(8000, exponent=exponent) + noise <= ahead.high)
        widths.append(ahead.high - ahead.low)
        when = laws.reaching(float(law(8000, exponent=exponent)))
        reached.append(when.low <= 8000 <= when.high)
        assert when.low <= when.middle <= when.high
    assert np.mean(inside) >= 0.85
    assert np.mean(reached) >= 0.85
    assert np.median(widths) < 0.15, "it says something"


def test_what_says_nothing_is_not_fitted():
    assert fit(noisy(POINTS[:3], 0)) is None
    assert fit(noisy((1000, 1500, 2000, 2500, 3000), 0)) is None


def test_a_curve_that_levels_off_never_gets_there():
    flat = Curve(POINTS, [0.30, 0.36, 0.385, 0.395, 0.398, 0.40], [ERROR] * 6)
    laws = fit(flat)
    assert laws is not None
    assert laws.reaching(0.6).low > FURTHEST * POINTS[-1]
    assert laws.at(8000).high < 0.5


def timed(last: int = 2000, seconds: float = 600.0) -> RunRecord:
    return RunRecord(Path("a"), "a", {"seconds": seconds}, [Step(last, 1.0, seconds)])


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (float(law(4000)), "about "),
        (0.9, "more than 1.7 h, 10 times this run, if more updates do it at all"),
    ],
)
def test_the_words(share, words):
    curve = Curve(POINTS, law(POINTS).tolist(), [0.003] * 6)
    assert how_long(timed(), curve, share).startswith(words)


def test_four_thousand_updates_are_twice_the_time():
    curve = Curve(POINTS, law(POINTS).tolist(), [1e-4] * 6)
    words = re.fullmatch(r"about (\d+) min \((\d+) min to (\d+) min\)", how_long(timed(), curve, float(law(4000))))
    assert words is not None
    middle, low, high = map(int, words.groups())
    assert low <= 20 <= high
    assert 17 <= middle <= 24
    few = Curve(POINTS[:2], law(POINTS[:2]).tolist(), [0.003] * 2)
    assert "cannot be told from this curve: 2 of its points" in how_long(timed(), few, 0.4)


# Two runs of CrossMAE (nano, CIFAR-10 at 16 pixels, patch 4, batches of 64, rate 1e-3 per 256, 0.8 and 3 epochs), on
# 3,000 training and 3,000 test images, class token and mean: `unveil evaluate RUN --over-training --limit 3000`.
SHORTER = {
    "steps": (76, 153, 230, 306, 382, 459, 536, 612),
    "linear-lbfgs": (0.3567, 0.3490, 0.3673, 0.3787, 0.3680, 0.3747, 0.3763, 0.3763),
    "knn": (0.2657, 0.2757, 0.2753, 0.2887, 0.3050, 0.3030, 0.3010, 0.3013),
    "knn-whitened": (0.3323, 0.3303, 0.3373, 0.3433, 0.3530, 0.3503, 0.3510, 0.3493),
}
LONGER = {
    "steps": (153, 306, 459, 612, 765, 918, 1071, 1224, 1377, 1530, 1683, 1836, 1989, 2142, 2295),
    "linear-lbfgs": (
        0.3713, 0.3700, 0.3800, 0.3967, 0.4000, 0.3950, 0.4113, 0.4083,
        0.4073, 0.4140, 0.4170, 0.4173, 0.4187, 0.4193, 0.4183,
    ),
    "knn": (
        0.2683, 0.2917, 0.3120, 0.3160, 0.3293, 0.3317, 0.3533, 0.3540,
        0.3473, 0.3457, 0.3457, 0.3457, 0.3503, 0.3457, 0.3467,
    ),
    "knn-whitened": (
        0.3330, 0.3393, 0.3540, 0.3650, 0.3617, 0.3697, 0.3710, 0.3777,
        0.3883, 0.3937, 0.3867, 0.3903, 0.3887, 0.3877, 0.3910,
    ),
}  # fmt: skip
PROBES = ("linear-lbfgs", "knn", "knn-whitened")


def recorded(curves: Mapping[str, Sequence[float]], seconds: float) -> RunRecord:
    """One of the two as a run folder would have it: its learning rate, and an evaluation at each step."""
    *steps, last = map(int, curves["steps"])
    log = [
        Step(
            s,
            s / 765,
            seconds * s / last,
            lr=min(s / (0.1 * last), 0.5 + 0.5 * math.cos(math.pi * (s / last - 0.1) / 0.9)),
        )
        for s in range(1, last + 1)
    ]

    def evaluation(probe: str, place: int) -> Evaluation:
        metrics = {"accuracy": curves[probe][place]}
        return Evaluation(probe, "cifar10", metrics, {}, "", settings={"test_images": 3000})

    earlier = {step: [evaluation(probe, place) for probe in PROBES] for place, step in enumerate(steps)}
    newest = [evaluation(probe, -1) for probe in PROBES]
    return RunRecord(Path("a"), "a", {"seconds": seconds}, log, evaluations=newest, earlier=earlier)


@pytest.mark.parametrize("title", ["linear probe (L-BFGS)", "k-NN", "whitened k-NN"])
def test_a_run_that_went_on_is_inside_what_its_first_part_says(title):
    run = recorded(LONGER, 1590)
    curve = all_curves(run)[title]
    whole = before_decay(run, curve)
    assert whole.updates[-1] == 1224, "the rate halves at 55 % of the run"
    inside = []
    for count in range(4, 9):
        law = fit(Curve(whole.updates[:count], whole.shares[:count], whole.errors[:count]))
        assert law is not None
        bounds = [law.at(updates) for updates in curve.updates[count:]]
        inside += [b.low <= share <= b.high for b, share in zip(bounds, curve.shares[count:], strict=True)]
    assert np.mean(inside) > 0.9


@pytest.mark.parametrize("title", ["linear probe (L-BFGS)", "k-NN", "whitened k-NN"])
def test_a_longer_run_is_inside_what_a_shorter_one_says(title):
    run = recorded(SHORTER, 317)
    reached, curve = all_curves(recorded(LONGER, 1590))[title].shares[-1], all_curves(run)[title]
    law = fit(before_decay(run, curve))
    assert law is not None
    ahead, when = law.at(2295), law.reaching(reached)
    assert ahead.low <= reached <= ahead.high
    assert when.low <= 2295 <= when.high
    assert ahead.high - ahead.low < 0.1, "it says something"
    assert "at least" in how_long(run, curve, reached), "306 updates bound it on one side alone"


LONG = ("--epochs", "40", "--batch-size", "10", "--lr", "0.02", "--warmup-epochs", "4", "--image-size", "16")


def test_a_run_keeps_five_weights_and_its_curve_is_measured(place, capsys):
    assert place.pretrain(*LONG) == 0
    kept = [weights.step for weights in unveil.Run.open(place.run).checkpoints()]
    assert kept == [8, 15, 30, 45, 60, 100, 120], "of 120 steps 1/16 ... 1/2, the last good checkpoint, and the last"
    words = ["evaluate", str(place.run), "--data", place.data, "--device", "cpu"]
    capsys.readouterr()
    assert main([*words, "--protocol", "knn", "linear-lbfgs", "--over-training"]) == 0
    printed = capsys.readouterr().out
    curves = all_curves(read_run(place.run))
    assert set(curves) == {"k-NN", "linear probe (L-BFGS)"}
    for title, protocol in (("k-NN", "knn"), ("linear probe (L-BFGS)", "linear-lbfgs")):
        assert list(curves[title].updates) == kept
        first = json.loads((place.run / "eval" / "epoch-2.667" / f"{protocol}.json").read_text())
        assert curves[title].shares[0] == first["metrics"]["accuracy"]
        assert first["settings"]["step"] == 8
        assert first["baselines"] == {}
    lamp = lamps(read_run(place.run))[1]
    assert lamp.level != "ok", "8 test images are no evidence"
    assert "To pass them on this machine: by linear probe (L-BFGS) " in lamp.advice
    assert str(lamp) in printed
    page = write_report([place.run]).read_text()
    assert "Accuracy over training" in page
    assert main([*words, "--protocol", "reconstruct", "--over-training"]) == 2
    assert "--over-training measures frozen features" in capsys.readouterr().err
    assert main([*words, "--over-training", "--at-epoch", "10"]) == 2
    assert "no --at-epoch" in capsys.readouterr().err


def test_a_short_run_keeps_none():
    assert _steps_to_save(None, 99, 10) == {}
    assert _steps_to_save(None, 1600, 100) == {100: 1.0, 200: 2.0, 400: 4.0, 600: 6.0, 800: 8.0}
    assert _steps_to_save(4.0, 1600, 100) == {400: 4.0, 800: 8.0, 1200: 12.0, 1600: 16.0}


def test_weights_that_are_too_large_are_not_kept(place, monkeypatch):
    monkeypatch.setattr("unveil.training.loop.MOST_SAVED", 1000)
    assert place.pretrain(*LONG) == 0
    assert not (place.run / "kept").exists()


def test_a_run_without_a_curve_is_told_how_to_measure_one(tmp_path):
    run = fake_run(tmp_path / "poor", accuracy=0.2)
    advice = lamps(read_run(run))[1].advice
    assert f"`unveil evaluate {run} --data DATA --protocol knn linear --over-training` tells how long" in advice
    vos = Evaluation("vos", "videos", {"jf_mean": 0.2}, {"untrained": {"jf_mean": 0.3}}, "card")
    advice = lamps(replace(read_run(run), evaluations=[vos]))[1].advice
    assert f"`unveil evaluate {run} --data LABELLED_IMAGES --over-training` tells how long" in advice
