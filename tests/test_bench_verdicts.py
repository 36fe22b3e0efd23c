"""What the bench makes of its times: goals judged by medians, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from unveil.experiments.bench.contenders import CONTENDERS
from unveil.experiments.bench.goals import judge_goals
from unveil.experiments.bench.results import Entry, Peak, Results, format_results, mode_table
from unveil.experiments.bench.timing import Seconds
from unveil.experiments.bench.work import Work

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
            ((1.2, 1.3, 1.4), (0.66, 0.66, 0.66), [True, True]),
            ((0.9, 1.1, 1.2), (0.8, 0.75, 0.7), [False, False]),
            # goals met by a hair, or missed: 1.15 and 0.97 x 300/200 = 1.455
            ((1.15, 1.15, 1.15), (1 / 1.456,) * 3, [True, True]),
            ((1.14, 1.14, 1.14), (1 / 1.454,) * 3, [False, False]),
        ],
    )
    def test_goals_are_judged_by_medians(self, theirs, cross, reached):
        results = made_up({"mae": (1.0, 1.0, 1.0), "transformers": theirs, "inter-block": cross})
        assert [v.reached for v in judge_goals(results)] == reached

    @pytest.mark.parametrize(("auto", "reached"), [(0.25, [True, True]), (0.26, [False, True]), (0.45, [False, False])])
    def test_what_pretrain_chooses_is_held_against_a_peer_in_float32_and_bf16(self, auto: float, reached: list[bool]):
        results = made_up({"transformers": (1.0, 1.0)}, precisions=("float32", "bf16"), bf16=0.7)
        ours = replace(results["transformers"], name="mae", seconds={"auto": [Seconds(0, 0, auto)] * 2}, chosen="bf16")
        results = replace(results, modes=("float32", "bf16", "auto"), entries=(*results.entries, ours))
        by_goal = {v.goal: v.reached for v in judge_goals(results) if "pretrain" in v.goal}
        assert list(by_goal.values()) == reached
        assert [v.reached for v in judge_goals(results) if "pretrain" not in v.goal] == [None, None]

    @pytest.mark.parametrize(("seconds", "reached"), [(1.0, [True, True]), (1.1, [False, False])])
    def test_crossmae_is_held_against_both_peaks(self, seconds: float, reached: list[bool]):
        entry = made_up({"inter-block": (seconds,)}, precisions=("bf16",), bf16=1.0)["inter-block"]
        entry = replace(entry, peaks={"bf16": [Peak(square=2 * entry.flops, alone=0.8)]})
        results = replace(made_up({}), modes=("bf16",), entries=(entry,))
        assert [v.reached for v in judge_goals(results)] == reached
        assert entry.of_square("bf16").median == pytest.approx(0.5 / seconds)
        assert entry.of_shapes("bf16").median == pytest.approx(0.8 / seconds)
        assert f"{0.8 / seconds:.0%}" in mode_table(results, "bf16")

    @pytest.mark.parametrize(("share", "reached"), [(0.5, True), (0.51, False)])
    def test_bf16_is_held_against_float32(self, share: float, reached: bool):
        results = made_up({"mae": (1.0, 2.0)}, precisions=("float32", "bf16"), bf16=share)
        assert [v.reached for v in judge_goals(results)] == [reached]

    def test_what_was_not_timed_is_not_judged(self):
        results = replace(made_up({"mae": (1.0, 2.0)}), skipped={"bf16": "only emulated", "transformers": "not there"})
        first, second = (str(v) for v in judge_goals(results))
        assert first.startswith("not judged: ")
        assert "transformers was not timed: not there" in first
        assert second.startswith("not judged: ")
        assert "mae in bf16 was not timed: only emulated" in second

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
    row = mode_table(results, "float32").splitlines()[2]
    for part in ("CrossMAE", "1200 ms", "1.25 (1.25 to 1.25)", "1.50", "0.83", "1.50 GB"):
        assert part in row
    assert "than float32" not in mode_table(results, "float32")
    assert mode_table(results, "bf16").splitlines()[2].endswith("2.50 (2.50 to 2.50)")
    said = format_results(results)
    assert said.splitlines()[0] == "unveil bench"
    assert "2 of 2 cores" in said
