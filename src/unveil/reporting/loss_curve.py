"""Checks of how the optimisation of a run went, by its loss, its skipped updates, its spikes and its returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .markup import brief, figure, percent
from .run_files import mapping, mappings, number
from .run_record import RunRecord

LEVELS = ("problem", "warning", "note", "ok")
ENOUGH_STEPS = 100
ENOUGH_ROWS = 20
FAR = 4.0  # times the first loss, at the end of a short run
MOST_SKIPPED, MANY_SPIKES = 0.1, 3  # a share of the updates; spikes, which also have to be one in a hundred updates
_CALMER = "Continue from an earlier checkpoint, or start again, with a lower learning rate or a longer warm-up."


@dataclass(frozen=True)
class Verdict:
    """The result of a check: its level (one of LEVELS), a sentence with the numbers, and advice."""

    level: str
    sentence: str
    advice: str = ""


def finite(values: Iterable[float]) -> Float[np.ndarray, " n"]:
    """The numbers that are finite, as an array."""
    array = np.array(list(values), np.float64)
    return array[np.isfinite(array)]


def losses_of(run: RunRecord) -> Float[np.ndarray, " n"]:
    """The losses of the log that are finite, as an array."""
    return finite(s.loss for s in run.steps)


def tenths(run: RunRecord) -> list[float]:
    """The mean loss of each tenth of the log."""
    return tenths_of(losses_of(run))


def tenths_of(loss: Float[np.ndarray, " n"]) -> list[float]:
    """The mean loss of each tenth, in their order."""
    return [float(tenth.mean()) for tenth in np.array_split(loss, 10)]


def ends(run: RunRecord) -> tuple[float, float]:
    """The mean loss over the first and over the last tenth of the log."""
    loss = losses_of(run)
    tenth = max(1, len(loss) // 10)
    return float(loss[:tenth].mean()), float(loss[-tenth:].mean())


def is_long_enough(run: RunRecord) -> bool:
    """Whether the log is long enough to assess its loss curve."""
    return bool(run.steps) and run.steps[-1].step >= ENOUGH_STEPS and len(losses_of(run)) >= ENOUGH_ROWS


def failed(run: RunRecord) -> Verdict | None:
    """The run ended with an error, was stopped or killed, or is still going."""
    status = run.text("status")
    where = f"at epoch {brief(run.epochs_done)} of {brief(run.number('options', 'epochs'))}"
    if status == "failed":
        return Verdict("problem", f"The run failed {where}: {run.text('error') or 'no error was noted'}.")
    if status == "stopped":
        return Verdict("note", f"The run was stopped {where}.", "The same command goes on from there.")
    if status == "killed":
        return Verdict("note", f"The run was killed {where}.", "The same command goes on from its last checkpoint.")
    if status == "running":
        return Verdict("note", f"The run was training {where} when this page was written.")
    return None


def shortened(run: RunRecord) -> Verdict | None:
    """The run made fewer updates than were planned, to end at its time."""
    made, planned = run.number("updates", "made"), run.number("updates", "planned")
    if not made < planned:
        return None
    sentence = f"The run made {made:,.0f} of {planned:,.0f} planned updates, since the machine was slower than measured"
    return Verdict("note", f"{sentence}, to end at its time.", "Give more --minutes, or the --epochs.")


def too_short(run: RunRecord) -> Verdict | None:
    """The run has logged no step so far, or too few to assess the loss curve."""
    if not run.steps:
        return Verdict("note", "No training step was logged yet.", "Write the report again once training has begun.")
    if is_long_enough(run):
        return None
    advice = f"Curves are assessed from {ENOUGH_STEPS} steps on: give more --minutes or --epochs."
    return Verdict("note", f"Too few steps to assess the loss curve: {run.steps[-1].step}.", advice)


def diverged(run: RunRecord) -> Verdict | None:
    """The loss is not finite at the end, or far above its minimum, or its start, in the last stage."""
    if not run.steps:
        return None
    if not math.isfinite(run.steps[-1].loss):
        return Verdict("problem", f"The loss was {figure(run.steps[-1].loss)} at the last step.", _CALMER)
    stages = run.fact("model", "stages")
    before = sum(number(mapping(stage).get("epochs")) for stage in stages[:-1]) if isinstance(stages, list) else 0.0
    loss = finite(s.loss for s in run.steps if not s.epoch <= before)
    if len(loss) < ENOUGH_ROWS:
        if len(loss) < 2 or not loss[-1] - loss[0] > (FAR - 1) * abs(loss[0]):
            return None
        return Verdict("problem", f"The loss rose from {figure(loss[0])} to {figure(loss[-1])}: it diverged.", _CALMER)
    means = tenths_of(loss)
    best, last = min(means), means[-1]
    if last <= 1.25 * best:
        return None
    return Verdict("problem", f"The loss fell to {figure(best)}, then climbed to {figure(last)}: it diverged.", _CALMER)


def skipped_updates(run: RunRecord) -> Verdict | None:
    """Updates were skipped because a gradient was not finite."""
    if not run.steps or not run.steps[-1].skipped > 0:
        return None
    skipped, steps = run.steps[-1].skipped, max(run.steps[-1].step, 1)
    plural = "update was" if skipped == 1 else "updates were"
    sentence = f"{skipped:.0f} of {steps:,} {plural} skipped, because the gradient was not finite"
    sentence += f" ({percent(skipped / steps)})."
    if skipped / steps > 0.01:
        return Verdict("problem", sentence, _CALMER)
    return Verdict("note", sentence, "A few are harmless; many call for a lower learning rate or float32.")


def spikes(run: RunRecord) -> Verdict | None:
    """The loss or the gradient rose far above its recent values, by robust z-score, for a while or at single steps."""
    count, steps = (run.steps[-1].spikes, max(run.steps[-1].step, 1)) if run.steps else (0.0, 1)
    if not count > 0:
        return None
    sentence = f"The loss or the gradient norm spiked {count:.0f} time{'s' * (count > 1)} in {steps:,} updates"
    if worst := max(
        (e for e in run.events if e.get("kind") == "spike"), key=lambda e: number(e.get("z")), default=None
    ):
        sentence += f", most at step {number(worst.get('step')):,.0f} (the {worst.get('of')}, robust z-score"
        sentence += f" {number(worst.get('z')):.0f})"
    if count >= MANY_SPIKES and count > 0.01 * steps:
        return Verdict("problem", f"{sentence}.", _CALMER)
    return Verdict("note", f"{sentence}.", "A few are harmless; many call for a lower learning rate or --clip 1.")


def went_back(run: RunRecord) -> Verdict | None:
    """Training went back to an earlier checkpoint and lowered its rate."""
    returns = mappings(run.fact("returns"))
    if not returns:
        return None
    steps = ", ".join(f"from step {number(e.get('step')):.0f} to {number(e.get('to')):.0f}" for e in returns)
    times = "once" if len(returns) == 1 else "twice"
    sentence = f"Training went back {times} ({steps}), each time with half the learning rate: {returns[-1].get('why')}."
    return Verdict("warning", sentence, _CALMER)


def unsound(run: RunRecord) -> Verdict | None:
    """Why the weights of a run that has ended are not to be trusted: `unveil pretrain` then ends with exit status 3."""
    if run.steps and run.steps[-1].skipped > MOST_SKIPPED * run.steps[-1].step:
        return skipped_updates(run)
    return next((v for check in (diverged, spikes) if (v := check(run)) and v.level == "problem"), None)


def not_falling(run: RunRecord) -> Verdict | None:
    """The loss did not fall over the whole training."""
    if not is_long_enough(run) or diverged(run):
        return None
    first, last = ends(run)
    if last < 0.98 * first:
        return None
    return Verdict(
        "problem",
        f"The loss did not fall: {figure(first)} at the start, {figure(last)} at the end.",
        "Check that the images differ and are not blank, then try a higher learning rate or more epochs.",
    )


def still_falling(run: RunRecord) -> Verdict | None:
    """The loss was still falling at the end, so the run was too short."""
    if not is_long_enough(run) or not_falling(run) or diverged(run):
        return None
    first, last = ends(run)
    *_, before, _, end = np.array_split(losses_of(run), 10)
    drop = float(before.mean() - end.mean())
    noise = math.sqrt(before.var() / len(before) + end.var() / len(end))
    if drop < 0.1 * (first - last) or drop < 3 * noise:
        return None
    share = percent(drop / (first - last))
    sentence = f"The loss was still falling: {share} of its total decrease came in the last fifth."
    return Verdict("note", sentence, "Train longer: raise --epochs.")
