"""The project's goals for the speed of a step, and whether a run of the bench reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .results import Results, spelled
from .timing import Quartiles, speed

WORK = ("base", 16, (224, 224))  # the goals are set for ViT-B/16 at 224
COSTS = (  # a contender, its base, and the highest ratio of their steps that meets the goal
    ("cmtmae-stage2", "mae", 2.4),
    ("cmtmae-cross", "mae", 2.1),
    ("multimae-guided", "multimae", 2.7),
    ("guided-half", "multimae", 1.7),
    ("guided-layer4", "multimae", 1.7),
    ("guided-every4", "multimae", 1.7),
    ("guided-fast", "multimae", 1.3),
)
SPEEDS = (  # how many times as fast, which contender in which mode, than which
    (1.15, ("mae", "float32"), ("transformers", "float32")),
    (2.0, ("mae", "bf16"), ("mae", "float32")),
    (4.0, ("mae", "auto"), ("transformers", "float32")),
    (1.6, ("mae", "auto"), ("transformers", "bf16")),
)
PER_FLOPS = 0.97  # of the ratio of FLOPs that CrossMAE gains over MAE
OF_SHAPES, OF_SQUARE = 0.8, 0.5  # of the peaks in bf16 that a step of CrossMAE reaches


@dataclass(frozen=True)
class GoalOutcome:
    """A goal of the project and whether this run reaches it; None where that was not measured."""

    goal: str
    reached: bool | None
    figures: str

    def __str__(self) -> str:
        word = {True: "reached", False: "NOT reached", None: "not judged"}[self.reached]
        return f"{word}: {self.goal}: {self.figures}"


def judge_goals(results: Results) -> list[GoalOutcome]:
    """The goals for ViT-B/16 at 224, judged by medians; those of contenders and modes that nobody asked for are left
    out, unless they were skipped.
    """
    if (results.work.size, results.work.patch, results.work.sides) != WORK:
        return [GoalOutcome("the goals are set for ViT-B/16 at 224", None, "this run had another size")]
    return [*_speeds(results), *_speed_per_flops(results), *_peaks(results), *_step_costs(results)]


def _missing(results: Results, *wanted: tuple[str, str]) -> str:
    """Which of these contenders in these modes were not timed, and why."""
    missing = {}
    for name, mode in wanted:
        if name not in results:
            missing[name] = results.skipped.get(name)
        elif mode and not results.has(name, mode):
            missing[f"{name} in {mode}"] = results.skipped.get(mode)
    return ", ".join(f"{what} was not timed" + (f": {why}" if why else "") for what, why in missing.items())


def _is_asked(results: Results, *wanted: tuple[str, str]) -> bool:
    """Whether these contenders and modes are part of the run, or were skipped in it."""
    return all(
        (name in results or name in results.skipped) and (mode in results.modes or mode in results.skipped)
        for name, mode in wanted
    )


def _speeds(results: Results) -> Iterator[GoalOutcome]:
    for least, fast, slow in SPEEDS:
        if not _is_asked(results, fast, slow):
            continue
        than = {"transformers": "transformers' ViTMAE"}.get(slow[0], "itself")
        goal = f"{'MAE as pretrain computes it' if fast[1] == 'auto' else f'{fast[1]} MAE'} is at least {least:g} times"
        goal += f" as fast as {than} in {slow[1]}"
        if missing := _missing(results, fast, slow):
            yield GoalOutcome(goal, None, missing)
            continue
        ratio = speed(results[slow[0]].seconds[slow[1]], results[fast[0]].seconds[fast[1]])
        yield GoalOutcome(goal, ratio.median >= least, f"{spelled(ratio)} times as fast")


def _speed_per_flops(results: Results) -> Iterator[GoalOutcome]:
    for mode in results.modes:
        if not (results.has("mae", mode) and results.has("inter-block", mode)):
            continue
        saving = results.saving("mae", "inter-block")
        ratio = speed(results["mae"].seconds[mode], results["inter-block"].seconds[mode])
        share = ratio.median / saving
        figures = f"{spelled(ratio)} times as fast as MAE at {saving:.2f} times fewer FLOPs, a share of {share:.2f}"
        goal = f"CrossMAE at 25 % gains at least {PER_FLOPS:g} of the ratio of counted FLOPs, {mode}"
        yield GoalOutcome(goal, share >= PER_FLOPS, figures)


def _peaks(results: Results) -> Iterator[GoalOutcome]:
    for mode in results.modes:
        if not (results.has("inter-block", mode) and mode in results["inter-block"].peaks):
            continue
        entry = results["inter-block"]
        if entry.how(mode).precision == "bf16":
            for least, of, share in (
                (OF_SHAPES, "its own shapes", entry.of_shapes(mode)),
                (OF_SQUARE, "2048 x 2048", entry.of_square(mode)),
            ):
                goal = f"a step of CrossMAE reaches at least {least:.0%} of the bf16 peak on {of}, {mode}"
                yield GoalOutcome(goal, share.median >= least, _percent(share))


def _percent(share: Quartiles) -> str:
    return f"{share.median:.0%} ({share.low:.0%} to {share.high:.0%})"


def _step_costs(results: Results) -> Iterator[GoalOutcome]:
    for other, base, most in COSTS:
        if other not in results:
            continue
        goal = f"a step of {other} costs at most {most} times one of {base}"
        if missing := _missing(results, (base, "")):
            yield GoalOutcome(goal, None, missing)
            continue
        arithmetic = results[other].flops / results[base].flops
        for mode in results.modes:
            if results.has(other, mode) and results.has(base, mode):
                cost = speed(results[other].seconds[mode], results[base].seconds[mode])
                figures = (
                    f"{spelled(cost)} times, {arithmetic:.2f} by arithmetic; what it adds is {1 - 1 / cost.median:.0%}"
                    f" of its step, {1 - 1 / arithmetic:.0%} by arithmetic"
                )
                yield GoalOutcome(f"{goal}, {mode}", cost.median <= most, figures)
