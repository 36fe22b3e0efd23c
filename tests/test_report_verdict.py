"""Every branch of the verdict, on logs made for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from report_fakes import fake_run
from unveil.reporting.journal import Signals, Step
from unveil.reporting.lamps import optimisation
from unveil.reporting.loss_curve import LEVELS
from unveil.reporting.run_record import RunRecord, read_run
from unveil.reporting.verdict import judge


def log(losses, *, per_row: int = 5, **fields) -> list[Step]:
    rows = enumerate(losses, start=1)
    return [
        Step(i * per_row, i / 10, i, float(x), lr=1e-3, **({"skipped": 0, "data_wait": 0.05} | fields)) for i, x in rows
    ]


def falling(n: int = 100, start: float = 1.0, end: float = 0.4, speed: float = 8.0) -> np.ndarray:
    noise = 0.005 * np.random.default_rng(0).standard_normal(n)
    return end + (start - end) * np.exp(-speed * np.arange(n) / n) + noise


def run(losses=None, *, info=None, **parts) -> RunRecord:
    parts.setdefault("steps", log(falling() if losses is None else losses))
    return RunRecord(Path("a"), "a", info or {"status": "finished", "options": {"epochs": 10}}, **parts)


def only(verdict: list, level: str):
    (one,) = [v for v in verdict if v.level == level]
    return one


def signals(**columns) -> list[Signals]:
    length = len(next(iter(columns.values())))
    return [Signals(50 * (i + 1), float(i), **{k: v[i] for k, v in columns.items()}) for i in range(length)]


def test_a_good_run_is_healthy_and_says_why():
    good = run(
        signals=signals(heldout_loss=[0.6, 0.42], rankme=[20, 60], feature_std=[0.3, 0.4], feature_dim=[192, 192])
    )
    assert judge(good) == []
    lamp = optimisation(good)
    assert (lamp.state, lamp.level) == ("healthy", "ok")
    for number in ("0.399", "0.420", "60.0 of 192", "10 epochs", "no update was skipped"):
        assert number in lamp.sentence


def test_no_metrics():
    assert "No training step" in only(judge(run(steps=[])), "note").sentence
    assert (optimisation(run(steps=[])).state, optimisation(run(steps=[])).level) == ("early", "note")


def test_too_short_to_tell():
    short = run(falling(10))
    assert "Too few steps" in only(judge(short), "note").sentence
    assert optimisation(short).state == "early"
    assert "Too few steps" in optimisation(short).sentence


def test_a_run_that_was_shortened_to_end_at_its_time_says_so():
    info = {"status": "finished", "options": {"epochs": 10}}
    short = run(info={**info, "updates": {"made": 500, "planned": 1200, "epochs": 10}})
    assert "500 of 1,200 planned updates" in only(judge(short), "note").sentence
    assert optimisation(short).state == "healthy"
    assert judge(run(info={**info, "updates": {"made": 500, "planned": 500}})) == []


@pytest.mark.parametrize(
    ("status", "level", "words", "state"),
    [
        ("failed", "problem", "out of <memory>", "failed"),
        ("stopped", "note", "10 of 20", "early"),
        ("running", "note", "was training", "early"),
    ],
)
def test_a_run_that_did_not_finish(status, level, words, state):
    info = {"status": status, "error": "out of <memory>", "options": {"epochs": 20}}
    assert words in only(judge(run(info=info)), level).sentence
    assert (optimisation(run(info=info)).state, optimisation(run(info=info)).level) == (state, level)


def test_a_loss_that_is_no_number():
    bad = run([*falling(60), math.nan])
    assert "at the last step" in only(judge(bad), "problem").sentence
    assert (optimisation(bad).state, optimisation(bad).level) == ("unstable", "problem")


def test_a_loss_that_climbed_has_diverged():
    losses = np.concatenate([falling(80), np.linspace(0.4, 1.5, 40)])
    bad = only(judge(run(losses)), "problem")
    assert "diverged" in bad.sentence
    assert "lower learning rate" in bad.advice


def test_a_passing_spike_is_no_divergence():
    losses = falling()
    losses[50] = 3.0
    assert optimisation(run(losses)).level == "ok"


@pytest.mark.parametrize(("skipped", "level"), [(1, "note"), (30, "problem")])
def test_skipped_updates(skipped, level):
    some = run(steps=log(falling(), skipped=skipped))
    assert f"{skipped} of 500 update" in only(judge(some), level).sentence
    assert optimisation(some).state == ("healthy" if level == "note" else "unstable")


def test_a_flat_loss():
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(100)
    assert "did not fall" in only(judge(run(noise)), "problem").sentence


def test_a_loss_that_still_falls_asks_for_more_epochs():
    short = run(np.linspace(1, 0.5, 100))
    assert "--epochs" in only(judge(short), "note").advice
    lamp = optimisation(short)
    assert (lamp.state, lamp.level) == ("early", "note")
    assert "--epochs" in lamp.advice


def test_noise_at_the_end_is_not_still_falling():
    assert judge(run(falling())) == []


def test_a_rising_heldout_loss_is_overfitting():
    over = run(signals=signals(heldout_loss=[0.6, 0.45, 0.55]))
    assert optimisation(over).state == "over-fitting"
    verdict = only(judge(over), "warning")
    assert "Over-fitting" in verdict.sentence
    assert "0.450" in verdict.sentence
    assert "epoch 1 " in verdict.sentence


def test_a_gap_to_the_heldout_loss_is_noted():
    verdict = only(judge(run(signals=signals(heldout_loss=[0.7, 0.6]))), "note")
    assert "above the training loss" in verdict.sentence


def test_features_without_spread_have_collapsed():
    assert "collapsed" in only(judge(run(signals=signals(feature_std=[0.4, 1e-5]))), "problem").sentence


def test_features_of_two_dimensions_have_collapsed():
    sick = run(signals=signals(rankme=[30.0, 1.8], feature_dim=[192, 192]))
    assert "1.80 of 192 dimensions" in only(judge(sick), "problem").sentence


def test_a_falling_rankme_is_a_warning():
    sick = run(signals=signals(rankme=[90.0, 60.0, 12.0], feature_dim=[192, 192, 192]))
    assert "fell from 60.0 to 12.0 of 192" in only(judge(sick), "warning").sentence


def test_a_rankme_below_the_untrained_one_is_no_warning():
    assert judge(run(signals=signals(rankme=[60.0, 12.0], feature_dim=[192, 192]))) == []


def test_waiting_for_data():
    verdict = only(judge(run(steps=log(falling(), data_wait=0.45), info={"settings": {"workers": 2}})), "warning")
    assert verdict.sentence.startswith("45.0 % of the training time")
    assert "with 2 workers" in verdict.sentence
    assert "--workers" in verdict.advice


@pytest.mark.parametrize(("count", "level"), [(10_000, "note"), (100, "warning"), (None, "note")])
def test_broken_files(count, level):
    verdict = only(judge(run(broken={f"{i}.jpg": "cut" for i in range(3)}, info={"data": {"count": count}})), level)
    assert verdict.sentence.startswith("3 broken files")


def test_the_gravest_comes_first():
    sick = run([*falling(60), math.nan], broken={"a": "b"}, signals=signals(heldout_loss=[0.4, 0.6]))
    order = [LEVELS.index(v.level) for v in judge(sick)]
    assert order == sorted(order)
    assert optimisation(sick).level == "problem"


GUIDED = {"size": "tiny", "patch": 4, "visible": 0.25, "epochs": 30, "student_weight": 0.3, "alpha": None}


class TestGuided:
    """The published ways in which training with teachers fails, each with the option that mends it."""

    def judged(self, folder: Path, accuracy: float = 0.5, others: Sequence[Path] = (), **options: object) -> str:
        run = fake_run(folder, recipe="cmtmae", options={**GUIDED, **options}, accuracy=accuracy, picture_epochs=1)
        return " ".join(f"{v.sentence} {v.advice}" for v in judge(read_run(run), [read_run(o) for o in others]))

    def test_a_low_loss_with_poor_features(self, tmp_path):
        said = self.judged(tmp_path / "poor", accuracy=0.30)
        assert "A low loss with poor features: it fell from" in said
        assert "30.0 %, beside 31.0 % of an untrained encoder and 35.0 % of raw pixels" in said
        assert "--student-weight" in said
        assert "poor features" not in self.judged(tmp_path / "good", accuracy=0.4)
        plain = judge(read_run(fake_run(tmp_path / "mae", recipe="mae", accuracy=0.30)))
        assert not [v for v in plain if "poor features" in v.sentence]

    @pytest.mark.parametrize("weight", [0.0, 0.05, 0.95, 1.0])
    def test_unrest_near_the_ends_of_the_student_weight(self, tmp_path, weight):
        calm = self.judged(tmp_path / "calm", student_weight=weight)
        assert "Unstable" not in calm
        run = tmp_path / "calm"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        steps[-20]["grad_norm"] = 60.0
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (result,) = [v for v in judge(read_run(run)) if "Unstable" in v.sentence]
        assert "rose to 60.0" in result.sentence
        assert "--student-weight to about 0.3" in result.advice
        stored = json.loads((run / "run.json").read_text())
        stored["options"]["alpha"] = 0.3
        (run / "run.json").write_text(json.dumps(stored))
        assert not [v for v in judge(read_run(run)) if "Unstable" in v.sentence], (
            "alpha is what counts where it is given"
        )

    def test_no_gain_over_an_mae_of_the_same_size(self, tmp_path):
        mae = fake_run(tmp_path / "mae", recipe="mae", accuracy=0.45, picture_epochs=1)
        said = self.judged(tmp_path / "same", accuracy=0.44, others=[mae])
        assert "No gain over an MAE of the same size: 44.0 % k-NN accuracy, 45.0 % of mae" in said
        assert "--teacher random" in said
        guided = self.judged(tmp_path / "own", accuracy=0.44, others=[mae], guide_warmup=0.0)
        assert "--guide-warmup" in guided
        assert "--teacher" not in guided
        assert "No gain" not in self.judged(tmp_path / "better", accuracy=0.46, others=[mae])
        assert "No gain" not in self.judged(tmp_path / "small", accuracy=0.44, others=[mae], size="small")

    def test_masks_that_follow_nothing(self, tmp_path):
        run = fake_run(tmp_path / "run")
        even = {"guide_evenness": 0.999, "hidden_attention": 0.751, "hidden_tokens": 0.75}
        line = {"kind": "signals", "step": 1200, "epoch": 30, "attention": even}
        with (run / "metrics.jsonl").open("a") as journal:
            journal.write(json.dumps(line) + "\n")
        (result,) = [v for v in judge(read_run(run)) if "hardly follow attention" in v.sentence]
        assert result.level == "note"
        assert "--temperature" in result.advice
