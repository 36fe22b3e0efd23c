"""The results of a bench: every raw time, the table, and whether the project's goals are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...runs import console
from .contenders import Work
from .timing import Precision, Quartiles, Seconds, quartiles, speed

GOAL_WORK = ("base", 16, (224, 224))  # the goals are set for ViT-B/16 at 224
COSTS = (  # a contender, its base, and the highest ratio of their steps that meets the goal
    ("cmtmae-stage2", "mae", 2.4),
    ("cmtmae-cross", "mae", 2.1),
    ("multimae-guided", "multimae", 2.7),
    ("guided-half", "multimae", 1.7),
    ("guided-layer4", "multimae", 1.7),
    ("guided-every4", "multimae", 1.7),
)


@dataclass(frozen=True)
class Entry:
    """The measurements of one contender; times and megabytes by precision."""

    name: str
    summary: str
    parameters: int
    flops: int
    megabytes: Mapping[Precision, float | None]
    seconds: Mapping[Precision, Sequence[Seconds]]


@dataclass(frozen=True)
class Results:
    """One run of the bench; the first entry is the base of all ratios."""

    work: Work
    precisions: tuple[Precision, ...]
    entries: tuple[Entry, ...]
    facts: Mapping[str, Any]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def __contains__(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def speed(self, base: str, other: str, precision: Precision) -> Quartiles:
        """How many times as fast as `base` another contender is, round by round."""
        return speed(self[base].seconds[precision], self[other].seconds[precision])

    def saving(self, base: str, other: str) -> float:
        """How many times the counted operations of another contender `base` needs."""
        return self[base].flops / self[other].flops

    def to_dict(self) -> dict[str, Any]:
        base = self.entries[0].name
        return {
            **self.facts,
            "work": asdict(self.work),
            "base": base,
            "skipped": dict(self.skipped),
            "contenders": {entry.name: asdict(entry) for entry in self.entries},
            "ratios": {
                precision: {
                    entry.name: {
                        "speed": asdict(self.speed(base, entry.name, precision)),
                        "flops": self.saving(base, entry.name),
                    }
                    for entry in self.entries
                }
                for precision in self.precisions
            },
            "goals": [asdict(verdict) for verdict in judge_goals(self)],
        }


@dataclass(frozen=True)
class GoalOutcome:
    """A goal of the project and whether this run reaches it; None where that was not measured."""

    goal: str
    reached: bool | None
    figures: str

    def __str__(self) -> str:
        word = {True: "reached", False: "NOT reached", None: "not judged"}[self.reached]
        return f"{word}: {self.goal}: {self.figures}"


def _spelled(ratio: Quartiles) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def judge_goals(results: Results) -> list[GoalOutcome]:
    """The goals for ViT-B/16 at 224, judged by medians."""
    if (results.work.size, results.work.patch, results.work.sides) != GOAL_WORK:
        return [GoalOutcome("the goals are set for ViT-B/16 at 224", None, "this run had another size")]
    costs = [v for other, base, most in COSTS if other in results for v in _step_cost(results, other, base, most)]
    if costs and not {"transformers", "inter-block"} & {*results.skipped, *(e.name for e in results.entries)}:
        return costs
    goal = "float32 MAE is at least as fast as transformers' ViTMAE"
    beside = _speedup(results, goal, 1, "transformers", "float32", "float32")
    in_bf16 = _speedup(results, "bf16 MAE is at least 2 times as fast as float32", 2, "mae", "float32", "bf16")
    return [beside, *_speed_per_flops(results), in_bf16, *costs]


def _missing(results: Results, *names: str) -> str:
    """Which of these contenders and precisions were not timed, and why."""
    missing = [name for name in names if name not in results.precisions and name not in results]
    return ", ".join(
        f"{name} was not timed" + (f": {why}" if (why := results.skipped.get(name)) else "") for name in missing
    )


def _step_cost(results: Results, other: str, base: str, most: float) -> list[GoalOutcome]:
    goal = f"a step of {other} costs at most {most} times one of {base}"
    if missing := _missing(results, base):
        return [GoalOutcome(goal, None, missing)]
    arithmetic = results[other].flops / results[base].flops
    outcomes = []
    for precision in results.precisions:
        cost = results.speed(other, base, precision)
        figures = (
            f"{_spelled(cost)} times, {arithmetic:.2f} by arithmetic; what it adds is {1 - 1 / cost.median:.0%} of its"
            f" step, {1 - 1 / arithmetic:.0%} by arithmetic"
        )
        outcomes.append(GoalOutcome(f"{goal}, {precision}", cost.median <= most, figures))
    return outcomes


def _speedup(results: Results, goal: str, least: float, base: str, first: Precision, other: Precision) -> GoalOutcome:
    """How many times as fast MAE in the `other` precision is as a base in the `first`."""
    if missing := _missing(results, *dict.fromkeys((first, other, "mae", base))):
        return GoalOutcome(goal, None, missing)
    ratio = speed(results[base].seconds[first], results["mae"].seconds[other])
    return GoalOutcome(goal, ratio.median >= least, f"{_spelled(ratio)} times as fast")


def _speed_per_flops(results: Results) -> list[GoalOutcome]:
    goal = "CrossMAE at 25 % gains at least 0.9 of the ratio of counted FLOPs"
    if missing := _missing(results, "mae", "inter-block"):
        return [GoalOutcome(goal, None, missing)]
    saving = results.saving("mae", "inter-block")
    outcomes = []
    for precision in results.precisions:
        ratio = results.speed("mae", "inter-block", precision)
        share = ratio.median / saving
        figures = f"{_spelled(ratio)} times as fast as MAE at {saving:.2f} times fewer FLOPs, a share of {share:.2f}"
        outcomes.append(GoalOutcome(f"{goal}, {precision}", share >= 0.9, figures))
    return outcomes


def precision_table(results: Results, precision: Precision) -> str:
    """One precision as plain text, a row for each contender."""
    base = results.entries[0].name
    has_both = precision == "bf16" and "float32" in results.precisions
    rows = [["", "step", "forward", "backward", "update", "times as fast", "FLOPs", "fewer", "share", "memory"]]
    rows[0] += ["than float32"] if has_both else []
    for entry in results.entries:
        times = entry.seconds[precision]
        phases = ([getattr(t, phase) for t in times] for phase in ("step", "forward", "backward", "update"))
        ratio, saving = results.speed(base, entry.name, precision), results.saving(base, entry.name)
        megabytes = entry.megabytes[precision]
        row = [
            entry.summary,
            *(f"{1000 * quartiles(values).median:.0f} ms" for values in phases),
            _spelled(ratio),
            f"{entry.flops / 1e9:.3g} G",
            f"{saving:.2f}",
            f"{ratio.median / saving:.2f}",
            "-" if megabytes is None else f"{megabytes / 1024:.2f} GB",
        ]
        row += [_spelled(speed(entry.seconds["float32"], times))] if has_both else []
        rows.append(row)
    return console.table(rows)


def format_results(results: Results) -> str:
    """The results as text for the terminal."""
    work, facts = results.work, results.facts
    height, width = work.sides
    machine = facts["machine"]
    processor = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    lines = [
        facts["command"],
        f"  on {processor}, {facts['threads']} of {machine['cores']} cores, torch {machine['torch']},"
        f" commit {facts['git'] or 'unknown'}, others busy {facts['busy_before']:.0%}",
        f"  ViT-{work.size}/{work.patch}, {work.batch_size} images of {height} x {width} a step,"
        f" {facts['rounds']} rounds, seed {work.seed}{', compiled' if facts['compile'] else ''}",
        f"  times as fast, fewer FLOPs: than {results.entries[0].summary}; medians, the middle half in brackets",
        "  share: how much of the ratio of FLOPs is gained in time",
        f"  memory: {facts['memory_is']}",
    ]
    for precision in results.precisions:
        lines += ["", precision, precision_table(results, precision)]
    lines += ["", *(f"not timed: {name}: {why}" for name, why in results.skipped.items())]
    return "\n".join([*lines, *map(str, judge_goals(results))])
