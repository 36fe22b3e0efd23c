"""Checks of a run's health. A check is a function from a run to a verdict, or to None; CHECKS lists them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .guidance_checks import easy_targets, even_guidance, no_gain, unstable_weight
from .markup import brief, counted, figure, percent
from .run import RunRecord, Signals
from .verdict_types import ENOUGH_ROWS, ENOUGH_STEPS, LEVELS, Verdict, ends_of, is_long_enough, losses_of


def judge(run: RunRecord, others: Sequence[RunRecord] = ()) -> list[Verdict]:
    """The verdicts of all checks on a run, compared with the others of a report; the gravest first."""
    found = [verdict for check in CHECKS if (verdict := check(run))]
    found += [verdict for compare in COMPARISONS if (verdict := compare(run, others))]
    if good := healthy(run, found):
        found.append(good)
    return sorted(found, key=lambda v: LEVELS.index(v.level))


def headline(verdicts: Sequence[Verdict]) -> Verdict:
    """The sentence at the top of the page, at the level of the gravest verdict."""
    gravest = verdicts[0].level if verdicts else "note"
    is_healthy = any(v.level == "ok" for v in verdicts)
    if gravest == "problem":
        return Verdict(gravest, "Something is wrong with this run.")
    if gravest == "warning":
        return Verdict(gravest, "This run has warnings.")
    return Verdict("ok", "Training looks healthy.") if is_healthy else Verdict("note", "Too early to tell.")


def failed(run: RunRecord) -> Verdict | None:
    """The run ended with an error, was stopped, or is still going."""
    status, where = (
        run.text("status"),
        f"at epoch {brief(run.epochs_done)} of {brief(run.number('dials', 'epochs'))}",
    )
    if status == "failed":
        return Verdict("problem", f"The run failed {where}: {run.text('error') or 'no error was noted'}.")
    if status == "stopped":
        return Verdict("note", f"The run was stopped {where}.", "The same command goes on from there.")
    if status == "running":
        return Verdict("note", f"The run was training {where} when this page was written, or was killed.")
    return None


def no_metrics(run: RunRecord) -> Verdict | None:
    """The run has logged no metrics so far."""
    if run.steps:
        return None
    return Verdict("note", "No training step was logged yet.", "Write the report again once training has begun.")


def too_short(run: RunRecord) -> Verdict | None:
    """Too few steps to assess the loss curve."""
    if not run.steps or is_long_enough(run):
        return None
    return Verdict(
        "note",
        f"Too few steps to assess the loss curve: {run.steps[-1].step}.",
        f"Curves are assessed from {ENOUGH_STEPS} steps on: give more --minutes or --epochs.",
    )


def diverged(run: RunRecord) -> Verdict | None:
    """The loss is not finite at the end, or far above its minimum."""
    if not run.steps:
        return None
    if not math.isfinite(run.steps[-1].loss):
        return Verdict("problem", f"The loss was {figure(run.steps[-1].loss)} at the last step.", _CALMER)
    loss = losses_of(run)
    if len(loss) < ENOUGH_ROWS:
        return None
    parts = [float(part.mean()) for part in np.array_split(loss, 10)]
    best, last = min(parts), parts[-1]
    if last > 1.25 * best:
        return Verdict(
            "problem",
            f"The loss fell to {figure(best)}, then climbed to {figure(last)}: it diverged.",
            _CALMER,
        )
    return None


def skipped_updates(run: RunRecord) -> Verdict | None:
    """Updates were skipped because a gradient was not finite."""
    if not run.steps or not run.steps[-1].skipped > 0:
        return None
    skipped, steps = run.steps[-1].skipped, max(run.steps[-1].step, 1)
    share = skipped / steps
    plural = "update was" if skipped == 1 else "updates were"
    sentence = f"{skipped:.0f} of {steps:,} {plural} skipped, because the gradient was not finite ({percent(share)})."
    if share > 0.01:
        return Verdict("problem", sentence, _CALMER)
    return Verdict("note", sentence, "A few are harmless; many call for a lower learning rate or float32.")


def not_falling(run: RunRecord) -> Verdict | None:
    """The loss did not fall over the whole training."""
    loss = losses_of(run)
    if not is_long_enough(run) or diverged(run):
        return None
    first, last = ends_of(loss)
    if last < 0.98 * first:
        return None
    return Verdict(
        "problem",
        f"The loss did not fall: {figure(first)} at the start, {figure(last)} at the end.",
        "Check that the images differ and are not blank, then try a higher learning rate or more epochs.",
    )


def still_falling(run: RunRecord) -> Verdict | None:
    """The loss was still falling at the end, so the run was too short."""
    loss = losses_of(run)
    if not is_long_enough(run) or not_falling(run) or diverged(run):
        return None
    first, last = ends_of(loss)
    tenths = np.array_split(loss, 10)
    before, end = tenths[-3], tenths[-1]
    drop = float(before.mean() - end.mean())
    noise = math.sqrt(before.var() / len(before) + end.var() / len(end))
    if drop < 0.1 * (first - last) or drop < 3 * noise:
        return None
    return Verdict(
        "note",
        f"The loss was still falling: {percent(drop / (first - last))} of its total decrease came in the last fifth.",
        "Train longer: raise --epochs.",
    )


def overfitting(run: RunRecord) -> Verdict | None:
    """The held-out loss rises while the training loss falls, or lies far above it."""
    heldout = [s for s in run.signals if math.isfinite(s.heldout_loss)]
    if not heldout or not is_long_enough(run):
        return None
    best, last = min(heldout, key=lambda s: s.heldout_loss), heldout[-1]
    train = ends_of(losses_of(run))[1]
    advice = "Use more images, fewer epochs or a smaller --size."
    if last.heldout_loss > 1.03 * best.heldout_loss:
        return Verdict(
            "warning",
            f"Over-fitting: the held-out loss was lowest at epoch {brief(best.epoch)} ({figure(best.heldout_loss)}) "
            f"and rose to {figure(last.heldout_loss)}, while the training loss is {figure(train)}.",
            advice,
        )
    if last.heldout_loss > 1.15 * train:
        gap = last.heldout_loss / train - 1
        return Verdict(
            "note",
            f"The held-out loss ({figure(last.heldout_loss)}) is {percent(gap)} above the training loss "
            f"({figure(train)}), though it does not rise yet.",
            advice,
        )
    return None


def collapse(run: RunRecord) -> Verdict | None:
    """The features hardly differ between images, or have few dimensions."""
    spread = [s.feature_std for s in run.signals if math.isfinite(s.feature_std)]
    advice = "Try a lower learning rate, a higher share hidden (a lower --visible) or another seed."
    if spread and spread[-1] < max(1e-4, 0.01 * max(spread)):
        return Verdict(
            "problem",
            f"The features have collapsed: their standard deviation over images is {figure(spread[-1])} "
            f"(it was {figure(max(spread))}).",
            advice,
        )
    ranks = [s for s in run.signals if math.isfinite(s.rankme)]
    if not ranks:
        return None
    # The rank at epoch 0 is that of random weights, and training lowers it.
    last, peak = ranks[-1], max((s.rankme for s in ranks if s.epoch > 0), default=math.nan)
    many = last.feature_dim if math.isfinite(last.feature_dim) else math.inf
    if last.rankme < 3 and many >= 16:
        return Verdict("problem", f"The features have collapsed to {_dimensions(last)}.", advice)
    if last.rankme < 0.5 * peak and last.rankme < 0.1 * many:
        return Verdict(
            "warning", f"The features shrink: RankMe fell from {figure(peak)} to {_dimensions(last)}.", advice
        )
    return None


def data_bound(run: RunRecord) -> Verdict | None:
    """Training waits for images to be decoded."""
    waits = np.array([s.data_wait for s in run.steps])
    waits = waits[np.isfinite(waits)]
    if not len(waits) or not (wait := float(np.median(waits[len(waits) // 2 :]))) > 0.3:
        return None
    workers = run.text("settings", "workers")
    beside = f", with {workers} workers" if workers else ""
    return Verdict(
        "warning",
        f"{percent(wait)} of the training time was spent waiting for images{beside}.",
        "Raise --workers, or keep smaller images on a faster disk.",
    )


def broken_files(run: RunRecord) -> Verdict | None:
    """Files that could not be read and were replaced."""
    if not run.broken:
        return None
    total, n = run.number("data", "count"), len(run.broken)
    share = n / total if total > 0 else math.nan
    of = f" of {total:,.0f} ({percent(share)})" if total > 0 else ""
    plural = "file" if n == 1 else "files"
    return Verdict(
        "warning" if share > 0.01 else "note",
        f"{n:,} broken {plural}{of} {'was' if n == 1 else 'were'} replaced by other samples.",
        "They are listed under Broken files.",
    )


def poor_features(run: RunRecord) -> Verdict | None:
    """The trained encoder is no better than an untrained one."""
    if easy_targets(run):
        return None  # it reports the same, with the reason
    for evaluation in run.evaluations:
        trained = evaluation.metrics.get("accuracy", math.nan)
        untrained = evaluation.baselines.get("untrained", {}).get("accuracy", math.nan)
        if trained <= untrained:
            return Verdict(
                "warning",
                f"The features are no better than an untrained encoder's: {evaluation.name} accuracy is "
                f"{percent(trained)}, untrained {percent(untrained)}.",
                "A low loss does not mean good features: train longer, lower --visible, or use more images.",
            )
    return None


CHECKS: tuple[Callable[[RunRecord], Verdict | None], ...] = (
    failed,
    diverged,
    collapse,
    not_falling,
    skipped_updates,
    overfitting,
    poor_features,
    easy_targets,
    unstable_weight,
    even_guidance,
    data_bound,
    broken_files,
    still_falling,
    too_short,
    no_metrics,
)
COMPARISONS: tuple[Callable[[RunRecord, Sequence[RunRecord]], Verdict | None], ...] = (no_gain,)


def healthy(run: RunRecord, found: Sequence[Verdict]) -> Verdict | None:
    """The measures of a run without problems and warnings."""
    if any(v.level in ("problem", "warning") for v in found) or not is_long_enough(run):
        return None
    first, last = ends_of(losses_of(run))
    parts = [f"the loss fell from {figure(first)} to {figure(last)} in {counted(run.epochs_done, 'epoch')}"]
    if not run.steps[-1].skipped > 0:
        parts.append("no update was skipped")
    if run.signals and math.isfinite(run.signals[-1].heldout_loss):
        parts.append(f"the held-out loss is {figure(run.signals[-1].heldout_loss)}")
    if run.signals and math.isfinite(run.signals[-1].rankme):
        parts.append(f"the features use about {_dimensions(run.signals[-1])}")
    sentence = "; ".join(parts)
    return Verdict("ok", f"{sentence[0].upper()}{sentence[1:]}.")


_CALMER = "Continue from an earlier checkpoint, or start again, with a lower learning rate or a longer warm-up."


def _dimensions(at: Signals) -> str:
    of = f" of {at.feature_dim:.0f}" if math.isfinite(at.feature_dim) else ""
    return f"{figure(at.rankme)}{of} dimensions"
