"""What a study says: statistics against scipy, tables, how soon an arm gets there, figures learning curves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from unveil.evaluation.statistics import compare, estimate, holm, p_value, t_quantile
from unveil.experiments.study.aggregate import (
    arm_rows,
    as_csv,
    as_text,
    claim,
    gather,
    learning_curves,
    reference_rows,
    remarks,
    time_to_target,
)
from unveil.experiments.study.jobs import expand
from unveil.experiments.study.registry import load_study
from unveil.reporting.study import intervals, study_page, write_intervals


def test_intervals_and_tests_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = torch.Generator().manual_seed(0)
    for count in (2, 3, 5, 9, 40):
        a, b = (torch.randn(count, generator=rng, dtype=torch.float64).tolist() for _ in range(2))
        result = compare(dict(enumerate(a)), dict(enumerate(b)))
        assert result is not None
        assert result.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
        low, high = stats.t.interval(0.95, count - 1, loc=sum(a) / count, scale=stats.sem(a))
        assert estimate(a).half == pytest.approx((high - low) / 2, rel=1e-9)
    for freedom in (1, 2, 7, 100):
        for t in (0.0, 0.3, 2.0, 15.0):
            assert p_value(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)


def test_statistics_by_hand():
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-4)
    assert t_quantile(4) == pytest.approx(2.7764, abs=1e-4)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert estimate([3.0]).half is None
    # t = 2 / (1 / sqrt(3)) = 3.4641 at two degrees of freedom
    result = compare({0: 1.0, 1: 2.0, 2: 3.0, 9: 0.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert result is not None
    assert (result.difference.mean, result.difference.count) == (2.0, 3)
    assert result.p == pytest.approx(0.0742, abs=1e-4)


def test_no_claim_is_made_that_does_not_hold():
    alike = compare({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5})
    assert alike is not None
    assert alike.p is None
    assert "no claim" in claim(alike, None)
    assert "one seed" in claim(compare({0: 1.0}, {0: 0.0}), None)
    assert "no claim" in claim(compare({0: 1.0}, {1: 0.0}), None)
    clear = compare({0: 0.50, 1: 0.51, 2: 0.52}, {0: 0.400, 1: 0.411, 2: 0.419})
    assert clear is not None
    assert claim(clear, clear.p) == "higher"
    assert claim(clear, 0.2) == "no difference shown"


def run(arm: str, seed: int, accuracy: float, setting: str = "scenes", seconds: float = 10.0) -> dict:
    return {
        **{"name": f"{arm}{seed}", "arm": arm, "setting": setting, "seed": seed, "status": "finished", "error": None},
        **{"metrics": {"knn accuracy": accuracy}, "references": {}, "seconds": seconds, "epochs": seconds / 10},
        **{"images_per_second": 100.0, "memory_mb": 512.0, "curves": {"rankme": [[0, 3.0], [1, 4.0]]}},
        **{"seconds_at": []},
    }


def test_tables_page_and_pictures_say_what_the_runs_carry(tmp_path: Path):
    runs = [run(arm, s, base + 0.01 * s + 0.001 * (s == 1) * (arm == "b")) for arm, base in (("<a>", 0.3), ("b", 0.4))
            for s in range(3)]  # fmt: skip
    rows = arm_rows(runs, "scenes", "<a>")
    assert [(r["arm"], r["says"]) for r in rows] == [("<a>", "the baseline"), ("b", "higher")]
    outcome = {
        **{"study": "s", "question": "q?", "note": "", "scale": "cpu", "baseline": "<a>", "seeds": [0, 1, 2]},
        **{"settings": [{"name": "scenes"}], "arms": [{"name": "b", "recipe": "mae", "options": {}}], "runs": runs},
        **{"rows": rows, "references": [], "times": [], "along": []},
    }
    outcome["remarks"] = remarks(outcome)
    outcome["headlines"] = ["knn accuracy"]
    assert "41.0 % ± " in as_text(outcome)
    assert "higher" in as_text(outcome)
    assert as_csv(outcome).count("\n") == 7
    page = study_page(outcome)
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert "src=" not in page.replace('src="data:', "")
    (file,) = write_intervals(outcome, tmp_path)
    assert file == tmp_path / "figures" / "scenes-knn-accuracy.svg"
    marks = [mark for mark in ElementTree.parse(file).iter() if mark.tag.endswith("circle")]
    left, right = (float(mark.attrib["cx"]) for mark in marks)
    assert 0 < left < right < 640
    assert "<a>" in [mark.text for mark in ElementTree.parse(file).iter()]


def test_what_stands_beside_the_arms_is_compared_with_the_baseline_and_corrected_apart():
    runs = [run(arm, seed, base + 0.01 * seed) for arm, base in (("a", 0.5), ("b", 0.51)) for seed in range(3)]
    for k, one in enumerate(runs[:3]):  # the baseline's
        near, far = (0.49, 0.51, 0.52)[k], (0.30, 0.32, 0.31)[k]
        one["references"] = {"raw": {"knn accuracy": near}, "from scratch": {"knn accuracy": far}}
    rows = {row["who"]: row for row in reference_rows(runs, "scenes", "a")}
    scratch = compare({0: 0.30, 1: 0.32, 2: 0.31}, {0: 0.50, 1: 0.51, 2: 0.52})
    assert scratch is not None
    assert scratch.p is not None
    assert rows["from scratch"]["difference"] == asdict(scratch.difference)
    assert (rows["from scratch"]["p"], rows["from scratch"]["p_holm"]) == (scratch.p, pytest.approx(2 * scratch.p))
    assert (rows["from scratch"]["says"], rows["raw"]["says"]) == ("lower", "no difference shown")
    assert [row["who"] for row in reference_rows(runs, "elsewhere", "a")] == []
    arms = arm_rows(runs, "scenes", "a")
    outcome = {
        **{"study": "s", "question": "q?", "note": "", "scale": "cpu", "baseline": "a", "seeds": [0, 1, 2]},
        **{"settings": [{"name": "scenes"}], "arms": [], "runs": runs, "remarks": [], "headlines": ["knn accuracy"]},
        **{"rows": arms, "references": list(rows.values()), "times": [], "along": []},
    }
    (line,) = (line for line in as_text(outcome).splitlines() if "(from scratch)" in line)
    assert "-20.0 % ± " in line
    assert line.endswith("lower")
    assert "no difference shown" in study_page(outcome)


def test_long_names_are_whole_beside_their_marks():
    rows = [
        (name, {"mean": mean, "half": 0.1}, False) for name, mean in (("random teacher, random masks", 0.3), ("b", 0.5))
    ]
    drawn = ElementTree.fromstring(str(intervals("knn accuracy", rows)))
    (name,) = (mark for mark in drawn.iter() if mark.text == "random teacher, random masks")
    first = min(float(mark.attrib["x1"]) for mark in drawn.iter() if mark.tag.endswith("line"))
    assert 7 * len(name.text or "") < float(name.attrib["x"]) < first


def test_how_soon_an_arm_gets_there():
    runs = [
        run("a", 0, 0.2, "short", 10), run("a", 0, 0.4, "long", 30),
        run("b", 0, 0.3, "short", 12), run("b", 0, 0.5, "long", 32),
        run("c", 0, 0.45, "short", 9), run("c", 0, 0.6, "long", 40),
    ]  # fmt: skip
    result = {t["arm"]: t for t in time_to_target(runs, ["short", "long"], "knn accuracy")}
    assert result["a"]["seconds"] == 30  # 0.4 is what all of them reach
    assert result["b"]["seconds"] == pytest.approx(22)
    assert result["c"]["at_most"]
    assert result["c"]["seconds"] == 9


def test_figures_along_the_way():
    runs = [run("a", seed, 0.5) for seed in (0, 1)] + [run("b", seed, 0.6) for seed in (0, 1)]
    for one in runs:
        start = 0.1 if one["arm"] == "a" else 0.2
        one["curves"]["knn accuracy"] = [[2.0, start + 0.01 * one["seed"]], [4.0, 0.3]]
        one["seconds_at"] = [[0.0, 0.0], [4.0, 40.0 if one["arm"] == "a" else 80.0]]
    rows = learning_curves(runs, "scenes", "a", ["knn accuracy"])
    assert [(r["arm"], r["epoch"], r["count"]) for r in rows] == [("a", 2, 2), ("a", 4, 2), ("b", 2, 2), ("b", 4, 2)]
    assert rows[0]["mean"] == pytest.approx(0.105)
    assert rows[0]["difference"] is None
    assert rows[2]["difference"]["mean"] == pytest.approx(0.1)
    result = {t["arm"]: t for t in time_to_target(runs, ["scenes"], "knn accuracy")}
    assert result["a"]["target"] == pytest.approx(0.3)
    assert (result["a"]["seconds"], result["b"]["seconds"]) == (pytest.approx(40), pytest.approx(80))
    for one in runs:
        one["curves"]["knn accuracy"].append([6.0, 0.4])
        one["seconds_at"].append([6.0, one["seconds_at"][-1][1] * 1.5])
    later = {t["arm"]: t for t in time_to_target(runs, ["scenes"], "knn accuracy")}
    assert later["b"]["seconds"] == pytest.approx(120)
    outcome = {
        **{"study": "s", "question": "q?", "note": "", "scale": "cpu", "baseline": "a", "seeds": [0, 1]},
        **{"settings": [{"name": "scenes"}], "arms": [], "runs": runs, "remarks": [], "headlines": ["knn accuracy"]},
        **{"rows": arm_rows(runs, "scenes", "a"), "references": [], "along": rows, "times": list(later.values())},
    }
    text = as_text(outcome)
    assert "epoch 2" in text
    assert "knn accuracy, minus a" in text
    assert "+10.0" in text
    page = study_page(outcome)
    assert "Learning curves" in page
    assert "scenes: knn accuracy" in page


def test_gathering_reads_what_is_there(tmp_path: Path):
    planned = load_study("crossmae-mask-ratio")
    jobs = expand(planned, "smoke", tmp_path)
    result = gather(planned, "smoke", jobs, tmp_path, {jobs[0].name: "no luck"})
    assert result["runs"][0]["error"] == "no luck"
    assert {r["status"] for r in result["runs"]} == {"not begun"}
    assert result["rows"] == []
