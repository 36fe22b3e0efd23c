"""The two lamps of a run: every colour of features beside every state of optimisation, and the words for them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from report_fakes import fake_run
from test_report_page import report
from test_report_verdict import falling, run, signals
from unveil.cli import main
from unveil.reporting.comparisons import comparisons, title_of
from unveil.reporting.lamps import features, headline, lamps
from unveil.reporting.run_record import Evaluation, read_run

TEST_IMAGES = 10_000


def measured(
    own: float,
    pixels: float | None = 0.41,
    untrained: float | None = 0.378,
    protocol: str = "linear",
    images: int | None = TEST_IMAGES,
    **more: float,
) -> Evaluation:
    """An evaluation with these accuracies on so many test images."""
    given = {"pixels": pixels, "untrained": untrained, **more}
    baselines = {name.replace("_", " "): {"accuracy": value} for name, value in given.items() if value is not None}
    settings = {} if images is None else {"test_images": images}
    return Evaluation(protocol, "d", {"accuracy": own}, baselines, "", settings=settings)


HEALTHY = {"losses": falling()}
EARLY = {"losses": falling(10)}
UNSTABLE = {"losses": [*falling(60), math.nan]}
MEASURED = {
    "not measured": ([], "note"),
    "above raw pixels and the untrained encoder": ([measured(0.55)], "ok"),
    "above the untrained encoder, below raw pixels": ([measured(0.395, untrained=0.30, pixels=0.45)], "warning"),
    "below raw pixels and the untrained encoder": ([measured(0.30)], "problem"),
    "no different from raw pixels and the untrained encoder": ([measured(0.40, images=100)], "warning"),
    "above the untrained encoder, no different from raw pixels": ([measured(0.415, untrained=0.30)], "warning"),
}


@pytest.mark.parametrize(("how", "state"), [(HEALTHY, "healthy"), (EARLY, "early"), (UNSTABLE, "unstable")])
@pytest.mark.parametrize(
    ("evaluations", "level", "words"), [(e, level, words) for words, (e, level) in MEASURED.items()]
)
def test_a_verdict_of_each_kind(how, state, evaluations, level, words):
    one = run(how["losses"], evaluations=evaluations)
    first, second = lamps(one)
    assert (first.name, first.state) == ("optimisation", state)
    assert (second.name, second.state, second.level) == ("features", words, level)
    top = headline((first, second))
    assert top.sentence == f"Optimisation {state}; features {words}."
    assert (top.level == "ok") == (state == "healthy" and level == "ok"), "green only where both are"


def test_the_words_hold_the_numbers_the_errors_and_what_is_missing():
    poor = run(
        evaluations=[measured(0.356)], info={"status": "finished", "seconds": 120, "options": {"batch_size": 64}}
    )
    lamp = lamps(poor)[1]
    # 1.96 sqrt(0.356 x 0.644 / 10,000) = 0.94 points
    assert lamp.sentence == "Linear probe 35.6 ± 0.9 % (raw pixels 41.0 %, untrained 37.8 %)."
    assert lamp.advice.startswith("Missing: updates, most often; these are 500 updates of 32,000 views in 2 min. ")
    over = run(evaluations=[measured(0.356)], signals=signals(heldout_loss=[0.6, 0.45, 0.55]))
    assert lamps(over)[1].advice == "Missing: images, for the run over-fits."
    broken = run([*falling(60), math.nan], evaluations=[measured(0.356)])
    assert lamps(broken)[1].advice == "Missing: a stable optimisation."


def test_every_protocol_must_be_above():
    both = [measured(0.55), measured(0.42, pixels=0.456, untrained=0.27, protocol="knn")]
    lamp = features(both)
    assert lamp.level == "warning"
    assert lamp.state == (
        "above raw pixels and the untrained encoder by linear probe; above the untrained encoder, below raw pixels by"
        " k-NN"
    )
    assert features([both[0], measured(0.501, pixels=0.456, untrained=0.27, protocol="knn")]).level == "ok"


def test_what_is_not_beside_both_baselines_is_not_green():
    assert features([measured(0.9, pixels=None, untrained=None)]).state == "measured without baselines"
    for given in ({"pixels": None}, {"untrained": None}, {"pixels": None, "untrained": None, "from_scratch": 0.2}):
        lamp = features([measured(0.9, **given)])
        assert lamp.level == "note", given
        assert "Not measured: raw pixels and the untrained encoder" in lamp.sentence
    assert features([measured(0.9), measured(0.9, None, None, "finetune", from_scratch=0.95)]).level == "warning"
    assert features([measured(0.9, images=None)]).level == "note", "its error is not known"
    assert "the sign alone counts" in features([measured(0.9, images=None)]).sentence


def test_each_number_of_labels_is_a_measure_with_the_error_of_its_draws():
    def few(own: float, half: float) -> Evaluation:
        metrics = {"accuracy_1%": own, "plus_minus_1%": half, "accuracy_10%": 0.6}
        baselines = {"untrained": {"accuracy_1%": 0.2, "accuracy_10%": 0.3}}
        return Evaluation("lowshot", "d", metrics, baselines, "", settings={"last": {"test_images": TEST_IMAGES}})

    assert [(c.title, c.side) for c in comparisons(few(0.25, 0.01))] == [
        ("few labels, 1%", 1),
        ("few labels, 10%", 1),
    ]
    assert comparisons(few(0.25, 0.10))[0].side == 0, "3 x 0.10 / 1.96 is more than 0.05"
    assert title_of("transfer", "accuracy_flowers") == "transfer, flowers"


def test_a_share_of_nothing_has_an_error():
    (one, _) = comparisons(measured(1.0, pixels=0.5, images=4))
    assert one.side == 0, "four images of four are no evidence"


@pytest.fixture(scope="module")
def poor_run(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "poor", accuracy=0.30)


def test_the_page_says_the_same(poor_run):
    both = lamps(read_run(poor_run))
    page = report(poor_run)
    assert headline(both).sentence in page.text
    for lamp in both:
        assert f"{lamp.state}. {lamp.sentence}" in page.text
    assert "healthy. " in page.text
    assert not [t for t in page.tags if t[1].get("class") == "verdict ok"]


def test_pretrain_and_evaluate_end_with_the_lamps(place, capsys):
    from tiny_runs import TRAIN

    assert place.pretrain(*TRAIN) == 0
    *_, first, second, step = capsys.readouterr().out.splitlines()
    assert step.startswith("next: unveil report")
    assert [first, second] == [str(lamp) for lamp in lamps(read_run(place.run))]
    assert second.startswith("features: not measured. `unveil evaluate")
    assert main(["evaluate", str(place.run), "--data", place.data, "--protocol", "knn", "--device", "cpu"]) == 0
    *_, first, second, step = capsys.readouterr().out.splitlines()
    assert [first, second] == [str(lamp) for lamp in lamps(read_run(place.run))]
    result = json.loads((place.run / "eval" / "knn.json").read_text())
    assert f"k-NN {100 * result['metrics']['accuracy']:.1f} ±" in second
    assert f"raw pixels {100 * result['baselines']['pixels']['accuracy']:.1f} %" in second


def test_the_same_test_images_are_compared_in_pairs():
    """2,000 images, of which the run gets all that raw pixels get and 3 % more: no difference of two samples, but one
    in pairs."""
    hits = np.zeros((2, 2000), np.float32)
    hits[0, :860], hits[1, :800] = 1, 1
    alone = measured(0.43, pixels=0.40, untrained=0.2, images=2000)
    kept = {"this run": {"accuracy": hits[0]}, "pixels": {"accuracy": hits[1]}}
    assert [c.side for c in comparisons(alone)] == [0, 1]
    assert [c.side for c in comparisons(replace(alone, outcomes=kept))] == [1, 1]
    short = {**kept, "pixels": {"accuracy": hits[1, :-1]}}
    assert comparisons(replace(alone, outcomes=short))[0].side == 0, "not the same images"
