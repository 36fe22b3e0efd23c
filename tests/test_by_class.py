"""Results by class: counted from scores, read from a result, and drawn with intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from report_fakes import NAMES, fake_run
from unveil.evaluation.by_class import MOST_PAIRS, of_counts, of_draws, of_scores
from unveil.evaluation.types import accuracies, hits
from unveil.reporting.by_class import read_classes, wilson
from unveil.reporting.page import write_report


def test_counted_by_hand():
    scores = torch.tensor([[2.0, 1, 0], [0, 1, 2], [1, 1, 0], [0, 3, 1], [5, 0, 0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    content = of_scores(scores, labels)["classes"]
    assert content["count"] == [3, 2, 0]
    assert content["right"] == [1, 1, 0], "a tie is a miss"
    assert sorted(content["confused"]) == [[0, 2, 1], [1, 0, 1]]


def test_they_are_the_accuracy():
    rng = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(400, 40, generator=rng), torch.randint(40, (400,), generator=rng)
    content = of_scores(scores, labels)["classes"]
    assert sum(content["right"]) == sum(hits(scores, labels))
    by_class = [right / count for right, count in zip(content["right"], content["count"], strict=True)]
    assert sum(by_class) / 40 == pytest.approx(accuracies(scores, labels)["mean_class_accuracy"])
    assert len(content["confused"]) <= MOST_PAIRS
    assert sum(content["right"]) + sum(n for *_, n in content["confused"]) <= 400


def test_of_many_classes_the_most_frequent_pairs_are_kept():
    counts = torch.ones(40, 40, dtype=torch.int64)
    counts[3, 5] = 9
    content = of_counts(counts, names=list(map(str, range(40))), unit="pixels")["classes"]
    assert len(content["confused"]) == MOST_PAIRS
    assert content["confused"][0] == [3, 5, 9]
    assert content["unit"] == "pixels"


def test_the_interval_of_a_share():
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)  # 1.96^2 / (10 + 1.96^2)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_page_names_the_classes(tmp_path: Path):
    page = write_report([fake_run(tmp_path / "run", epochs=1)]).read_text()
    assert all(name in page for name in NAMES)
    assert "Best dog with 75.0 %, worst बिल्ली with 25.0 %. Confused most often: кот, taken for dog in 35.0 %" in page
    assert 'data-label="95 % interval">23.2 % to 26.9 %<' in page


@pytest.mark.parametrize(
    "changed",
    [
        {"count": [1, 2]},
        {"right": [9, 9, 9]},
        {"count": "many"},
        {"count": [0, 0, 0], "right": [0, 0, 0]},
        {"right": [float("nan"), 0, 0]},
    ],
)
def test_what_does_not_agree_with_itself_is_left_out(changed: dict):
    sound = {"count": [3, 2, 1], "right": [1, 1, 1], "confused": [[0, 1, 2], [0, 9, 1], "x", [1, 0, 7]]}
    read = read_classes(json.loads(json.dumps({"classes": sound})))
    assert read is not None
    assert read.confused == {0: {1: 2}}
    assert read.names == ["0", "1", "2"]
    assert read_classes({"classes": {**sound, **changed}}) is None


def test_draws_are_added_up_and_shown_by_number_of_labels(tmp_path: Path):
    first, second = torch.tensor([[2, 1], [0, 3]]), torch.tensor([[1, 2], [1, 2]])
    added = of_draws([of_counts(first), of_counts(second)])
    assert added["classes"] == {
        "count": [6, 6], "right": [3, 5], "confused": [[0, 1, 3], [1, 0, 1]], "unit": "images over 2 draws",
    }  # fmt: skip
    assert of_draws([of_counts(first), {}]) == {}
    run = fake_run(tmp_path / "run", epochs=1)
    file = run / "eval" / "knn.json"
    result = json.loads(file.read_text())
    added["classes"]["names"] = ["left", "right"]
    parts = {"1%": added, "10%": 5}
    result["metrics"] = {"accuracy_1%": 0.5, "a": 1, "b": 1, "mean_class_accuracy": 0.272}
    (run / "eval" / "lowshot.json").write_text(json.dumps({**result, "protocol": "lowshot", "shown": {"parts": parts}}))
    page = write_report([run]).read_text()
    assert "<h3>few labels, 1%" in page
    assert "<h3>few labels<" in page
    assert "1 more measure<" in page
    assert "27.2 %" in page, "a share of the classes' accuracies"
    assert "test images over 2 draws" in page
