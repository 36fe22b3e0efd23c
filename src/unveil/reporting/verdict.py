"""Checks of a run. A check is a function from a run to a verdict, or to None; the tuples at the end list them.

docs/looking.md has the sources of the published failures of training with teachers (CMT-MAE and its relatives).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .journal import Signals
from .loss_curve import (
    LEVELS,
    Verdict,
    diverged,
    ends,
    failed,
    finite,
    is_long_enough,
    not_falling,
    shortened,
    skipped_updates,
    spikes,
    still_falling,
    tenths,
    too_short,
    went_back,
)
from .markup import brief, counted, figure, percent
from .run_record import Evaluation, RunRecord

_NEAR = 0.1  # from 0 or 1: a student weight as near as this counts as 0 or 1
_EVEN = 0.995


def judge(run: RunRecord, others: Sequence[RunRecord] = ()) -> list[Verdict]:
    """The verdicts of all checks on a run, compared with the others of a report; the gravest first."""
    verdicts = [verdict for verdict in (*(check(run) for check in CHECKS), no_gain(run, others)) if verdict]
    return sorted(verdicts, key=lambda v: LEVELS.index(v.level))


def overfitting(run: RunRecord) -> Verdict | None:
    """The held-out loss rises while the training loss falls, or lies far above it."""
    heldout = [s for s in run.signals if math.isfinite(s.heldout_loss)]
    if not heldout or not is_long_enough(run):
        return None
    best, last = min(heldout, key=lambda s: s.heldout_loss), heldout[-1]
    train = ends(run)[1]
    advice = "Use more images, fewer epochs or a smaller --size."
    if last.heldout_loss > 1.03 * best.heldout_loss:
        return Verdict(
            "warning",
            f"Over-fitting: the held-out loss was lowest at epoch {brief(best.epoch)} ({figure(best.heldout_loss)}) "
            f"and rose to {figure(last.heldout_loss)}, while the training loss is {figure(train)}.",
            advice,
        )
    if last.heldout_loss <= 1.15 * train:
        return None
    return Verdict(
        "note",
        f"The held-out loss ({figure(last.heldout_loss)}) is {percent(last.heldout_loss / train - 1)} above the "
        f"training loss ({figure(train)}), though it does not rise yet.",
        advice,
    )


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
    if not (last.rankme < 0.5 * peak and last.rankme < 0.1 * many):
        return None
    return Verdict("warning", f"The features shrink: RankMe fell from {figure(peak)} to {_dimensions(last)}.", advice)


def not_computable(run: RunRecord) -> Verdict | None:
    """Signals that could not be computed, since features or losses were not finite or too large."""
    if not (names := run.last_signals.not_computable):
        return None
    sentence = f"At epoch {brief(run.last_signals.epoch)} not computable: {', '.join(names)}."
    return Verdict("warning", sentence, "The weights have diverged; use earlier ones.")


def data_bound(run: RunRecord) -> Verdict | None:
    """Training waits for images to be decoded."""
    waits = finite(s.data_wait for s in run.steps)
    if not len(waits) or not (wait := float(np.median(waits[len(waits) // 2 :]))) > 0.3:
        return None
    beside = f", with {workers} workers" if (workers := run.text("settings", "workers")) else ""
    return Verdict(
        "warning",
        f"{percent(wait)} of the training time was spent waiting for images{beside}.",
        "Raise --workers, or keep smaller images on a faster disk.",
    )


def unreadable_files(run: RunRecord) -> Verdict | None:
    """Files that could not be read and were replaced."""
    if not run.broken:
        return None
    total, n = run.number("data", "count"), len(run.broken)
    share = n / total if total > 0 else math.nan
    of = f" of {total:,.0f} ({percent(share)})" if total > 0 else ""
    verb = "file{} was" if n == 1 else "files{} were"
    return Verdict(
        "warning" if share > 0.01 else "note",
        f"{n:,} broken {verb.format(of)} replaced by other samples.",
        "They are listed under Broken files.",
    )


def _student_weight(run: RunRecord) -> float:
    """The student's share in masks and targets; NaN for a run without such an option."""
    alpha = run.number("options", "alpha")
    return run.number("options", "student_weight") if math.isnan(alpha) else alpha


def easy_targets(run: RunRecord) -> Verdict | None:
    """A low loss with a poor k-NN accuracy: the targets have become easy to predict."""
    knn = _knn(run)
    if math.isnan(_student_weight(run)) or knn is None or not is_long_enough(run):
        return None
    first, last = ends(run)
    better = [name for name in _WORDS if knn.accuracy(name) >= knn.accuracy()]
    if last > 0.7 * first or not better:
        return None
    baselines = " and ".join(f"{percent(knn.accuracy(name))} of {_WORDS[name]}" for name in better)
    return Verdict(
        "warning",
        f"A low loss with poor features: it fell from {figure(first)} to {figure(last)}, but the k-NN accuracy is "
        f"{percent(knn.accuracy())}, beside {baselines}. The student's own features have become targets that are easy"
        " to predict.",
        "Lower --student-weight, or lengthen --stage1-epochs, so that the teacher's targets lead; --momentum nearer "
        "to 1 keeps the student's from moving.",
    )


def unstable_weight(run: RunRecord) -> Verdict | None:
    """Unstable training with a student weight near 0 or 1."""
    weight = _student_weight(run)
    is_all_teacher = run.text("options", "masking") == run.text("options", "targets") == "teacher"
    if math.isnan(weight) or _NEAR < weight < 1 - _NEAR or is_all_teacher or not is_long_enough(run):
        return None
    if not (signs := _unrest(run)):
        return None
    end = "the teacher's" if weight < 0.5 else "the student's own"
    return Verdict(
        "warning",
        f"Unstable with a student weight of {brief(weight)}, which makes masks and targets almost only {end}: "
        f"{'; '.join(signs)}.",
        "Set --student-weight to about 0.3, the paper's best.",
    )


def even_guidance(run: RunRecord) -> Verdict | None:
    """Attention so uniform that masks drawn from it are random."""
    last = next((s.attention for s in reversed(run.signals) if "guide_evenness" in s.attention), {})
    names = ("guide_evenness", "hidden_attention", "hidden_tokens")
    evenness, hidden, tokens = (last.get(name, math.nan) for name in names)
    if not (evenness > _EVEN and abs(hidden - tokens) < 0.02):
        return None
    return Verdict(
        "note",
        f"The masks hardly follow attention: its map is almost uniform (normalised entropy {figure(evenness)}), and "
        f"they hide {percent(hidden)} of it with {percent(tokens)} of the patches.",
        "Lower --temperature, take --draw hard, read another --layer, or use a --teacher whose attention is sharper.",
    )


def no_gain(run: RunRecord, others: Sequence[RunRecord]) -> Verdict | None:
    """No better than an MAE of the same size that is in the same report."""
    knn = _knn(run)
    if math.isnan(_student_weight(run)) or knn is None:
        return None
    plain = [
        (other.name, other_knn.accuracy())
        for other in others
        if other.text("recipe") == "mae" and other.text("options", "size") == run.text("options", "size")
        if (other_knn := _knn(other)) is not None and other_knn.data == knn.data
    ]
    name, best = max(plain, key=lambda p: p[1], default=("", math.nan))
    if not knn.accuracy() <= best:
        return None
    return Verdict(
        "warning",
        f"No gain over an MAE of the same size: {percent(knn.accuracy())} k-NN accuracy, {percent(best)} of {name}. One"
        " run of each is no evidence for a small difference.",
        _OWN_GUIDE if run.text("options", "guide_warmup") and not run.text("options", "teacher") else _WITH_TEACHER,
    )


_WITH_TEACHER = (
    "Compare with --teacher random and with --masking uniform: if those do as well, the teacher does not suit "
    "such images, so take another --teacher; else try --draw gumbel and --student-weight 0.3."
)
_OWN_GUIDE = (
    "Compare with a run of multimae that is as long, whose masks are random: early attention carries little "
    "information, so follow it later, with a longer --guide-warmup, or train for more epochs."
)
_WORDS = {"untrained": "an untrained encoder", "pixels": "raw pixels"}


def _knn(run: RunRecord) -> Evaluation | None:
    return next((e for e in run.evaluations if e.protocol == "knn" and "accuracy" in e.metrics), None)


def _unrest(run: RunRecord) -> list[str]:
    """Signs of unstable training in the second half of the log."""
    signs = []
    half = run.steps[len(run.steps) // 2 :]
    norms = finite(s.grad_norm for s in half)
    if len(norms) >= 10 and (peak := float(norms.max())) > 10 * (middle := float(np.median(norms))):
        signs.append(f"the gradient norm rose to {figure(peak)} from about {figure(middle)}")
    means = tenths(run)
    lowest = min(means)
    if (worst := max(means[means.index(lowest) :])) > 1.1 * lowest:
        signs.append(f"the loss rose from {figure(lowest)} to {figure(worst)}")
    if run.steps[-1].skipped > 0:
        signs.append(f"{run.steps[-1].skipped:.0f} updates were skipped")
    return signs


def _dimensions(at: Signals) -> str:
    of = f" of {at.feature_dim:.0f}" if math.isfinite(at.feature_dim) else ""
    return f"{figure(at.rankme)}{of} dimensions"


def measures(run: RunRecord) -> str:
    """The measures of a run whose loss curve can be assessed, in a sentence."""
    first, last = ends(run)
    signals = run.last_signals
    parts = [f"the loss fell from {figure(first)} to {figure(last)} in {counted(run.epochs_done, 'epoch')}"]
    parts += [] if run.steps[-1].skipped > 0 else ["no update was skipped"]
    parts += [f"the held-out loss is {figure(signals.heldout_loss)}"] if math.isfinite(signals.heldout_loss) else []
    parts += [f"the features use about {_dimensions(signals)}"] if math.isfinite(signals.rankme) else []
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


Check = Callable[[RunRecord], Verdict | None]
OPTIMISATION: tuple[Check, ...] = (
    failed, diverged, collapse, not_falling, skipped_updates, spikes, went_back, unstable_weight, overfitting,
    still_falling, too_short,
)  # fmt: skip
CHECKS: tuple[Check, ...] = (
    *OPTIMISATION,
    shortened,
    not_computable,
    easy_targets,
    even_guidance,
    data_bound,
    unreadable_files,
)
