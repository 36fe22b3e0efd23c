"""What the bench makes of its times: goals judged by medians, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from unveil.experiments.bench.contenders import CONTENDERS, Work
from unveil.experiments.bench.results import Entry, Results, format_results, judge_goals, precision_table
from unveil.experiments.bench.timing import Seconds

SMALL = Work("tiny", 8, (32,), 2, 0)
BASE = Work("base", 16, (224,), 8, 0)


def made_up(
    steps: dict[str, Sequence[float]],
    work: Work = BASE,
    precisions: tuple[str, ...] = ("float32",),
    bf16: float = 0.4,
) -> Results:
    """Results with given times; bf16 takes a given share of them. Operations are those that were counted."""
    flops = {"mae": 300, "inter-block": 200}
    entries = tuple(
        Entry(
            name,
            CONTENDERS[name].summary,
            1,
            flops.get(name, 300),
            dict.fromkeys(precisions, 1536.0),
            {p: [Seconds(0, 0, t * (bf16 if p == "bf16" else 1)) for t in times] for p in precisions},
        )
        for name, times in steps.items()
    )
    machine = {"processor": "Z", "device": "cpu", "torch": "2", "cores": 2}
    facts = {"command": "unveil bench", "machine": machine, "threads": 2, "git": None, "rounds": 3, "compile": False}
    facts |= {"memory_is": "resident", "busy_before": 0.0}
    return Results(work, precisions, entries, facts)  # type: ignore[arg-type]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("theirs", "cross", "reached"),
        [
            ((1.0, 1.1, 1.2), (0.7, 0.7, 0.7), [True, True]),
            ((0.9, 0.99, 1.2), (0.8, 0.75, 0.7), [False, False]),
            ((1.0, 1.0, 1.0), (1 / 1.36,) * 3, [True, True]),  # goals met exactly, or by a hair: 0.9 x 300/200 = 1.35
            ((1.0, 1.0, 1.0), (1 / 1.34,) * 3, [True, False]),
        ],
    )
    def test_goals_are_judged_by_medians(self, theirs, cross, reached):
        results = made_up({"mae": (1.0, 1.0, 1.0), "transformers": theirs, "inter-block": cross})
        assert [v.reached for v in judge_goals(results)] == [*reached, None]

    @pytest.mark.parametrize(("share", "reached"), [(0.5, True), (0.51, False)])
    def test_bf16_is_held_against_float32(self, share: float, reached: bool):
        results = made_up({"mae": (1.0, 2.0)}, precisions=("float32", "bf16"), bf16=share)
        assert judge_goals(results)[-1].reached is reached

    def test_what_was_not_timed_is_not_judged(self):
        results = replace(made_up({"mae": (1.0, 2.0)}), skipped={"bf16": "only emulated", "transformers": "not there"})
        said = [str(v) for v in judge_goals(results)]
        assert all(line.startswith("not judged: ") for line in said)
        assert "transformers was not timed: not there" in said[0]
        assert "inter-block was not timed" in said[1]
        assert "bf16 was not timed: only emulated" in said[2]

    @pytest.mark.parametrize(("seconds", "reached"), [(2.7, True), (2.8, False)])
    def test_guidance_has_a_price(self, seconds: float, reached: bool):
        results = made_up({"multimae": (1.0, 1.0), "multimae-guided": (seconds, seconds)})
        (verdict,) = judge_goals(results)
        assert verdict.reached is reached
        assert f"{seconds:.2f} ({seconds:.2f} to {seconds:.2f}) times, 1.00 by arithmetic" in str(verdict)
        (alone,) = judge_goals(made_up({"multimae-guided": (1.0, 1.0)}))
        assert str(alone).endswith("multimae was not timed")

    def test_goals_are_for_one_size(self):
        assert [v.reached for v in judge_goals(made_up({"mae": (1.0, 1.0)}, SMALL))] == [None]


def test_the_table_has_the_ratios_of_time_and_of_flops_side_by_side():
    results = made_up({"mae": (1.0, 2.0), "inter-block": (0.8, 1.6)}, precisions=("float32", "bf16"))
    row = precision_table(results, "float32").splitlines()[2]
    for part in ("CrossMAE", "1200 ms", "1.25 (1.25 to 1.25)", "1.50", "0.83", "1.50 GB"):
        assert part in row
    assert "than float32" not in precision_table(results, "float32")
    assert precision_table(results, "bf16").splitlines()[2].endswith("2.50 (2.50 to 2.50)")
    said = format_results(results)
    assert said.splitlines()[0] == "unveil bench"
    assert "2 of 2 cores" in said
