"""Published failures of training with teachers, CMT-MAE and its relatives (docs/looking.md has the sources)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .markup import brief, figure, percent
from .run import Evaluation, RunRecord, number
from .verdict_types import Verdict, ends_of, is_long_enough, losses_of

_NEAR = 0.1  # from 0 or 1: a student weight as near as this counts as 0 or 1
_EVEN = 0.995


def student_weight(run: RunRecord) -> float:
    """The student's share in masks and targets; NaN for a run without such an option."""
    dials = run.mapping("dials")
    alpha = number(dials.get("alpha"))
    return number(dials.get("student_weight")) if math.isnan(alpha) else alpha


def easy_targets(run: RunRecord) -> Verdict | None:
    """A low loss with a poor k-NN accuracy: the targets have become easy to predict."""
    if math.isnan(student_weight(run)) or not is_long_enough(run):
        return None
    first, last = ends_of(losses_of(run))
    knn = _knn(run)
    if knn is None or last > 0.7 * first:
        return None
    accuracy = knn.metrics.get("accuracy", math.nan)
    beside = {name: values.get("accuracy", math.nan) for name, values in knn.baselines.items()}
    better = [name for name in ("untrained", "pixels") if beside.get(name, math.nan) >= accuracy]
    if not better:
        return None
    told = " and ".join(f"{percent(beside[name])} of {_WORDS[name]}" for name in better)
    return Verdict(
        "warning",
        f"A low loss with poor features: it fell from {figure(first)} to {figure(last)}, but the k-NN accuracy is "
        f"{percent(accuracy)}, beside {told}. The student's own features have become targets that are easy to predict.",
        "Lower --student-weight, or lengthen --stage1-epochs, so that the teacher's targets lead; --momentum nearer "
        "to 1 keeps the student's from moving.",
    )


def unstable_weight(run: RunRecord) -> Verdict | None:
    """Unstable training with a student weight near 0 or 1."""
    weight = student_weight(run)
    is_all_teacher = run.text("dials", "masking") == run.text("dials", "targets") == "teacher"
    if math.isnan(weight) or _NEAR < weight < 1 - _NEAR or is_all_teacher or not is_long_enough(run):
        return None
    signs = _unrest(run)
    if not signs:
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
    maps = [s.attention for s in run.signals if "guide_evenness" in s.attention]
    if not maps:
        return None
    last = maps[-1]
    evenness, hidden, tokens = (
        last.get(name, math.nan) for name in ("guide_evenness", "hidden_attention", "hidden_tokens")
    )
    if not (evenness > _EVEN and abs(hidden - tokens) < 0.02):
        return None
    return Verdict(
        "note",
        f"The masks hardly follow attention: its map is almost uniform (evenness {figure(evenness)}), and they hide "
        f"{percent(hidden)} of it with {percent(tokens)} of the patches.",
        "Lower --temperature, take --draw hard, read another --layer, or use a --teacher whose attention is sharper.",
    )


def no_gain(run: RunRecord, others: Sequence[RunRecord]) -> Verdict | None:
    """No better than an MAE of the same size that is in the same report."""
    knn = _knn(run)
    if math.isnan(student_weight(run)) or knn is None:
        return None
    accuracy = knn.metrics.get("accuracy", math.nan)
    plain = [
        (other.name, found.metrics.get("accuracy", math.nan))
        for other in others
        if other.text("recipe") == "mae" and other.text("dials", "size") == run.text("dials", "size")
        if (found := _knn(other)) is not None and found.data == knn.data
    ]
    name, best = max(plain, key=lambda p: p[1], default=("", math.nan))
    if not accuracy <= best:
        return None
    return Verdict(
        "warning",
        f"No gain over an MAE of the same size: {percent(accuracy)} k-NN accuracy, {percent(best)} of {name}. One run "
        "of each is no evidence for a small difference.",
        _OWN_GUIDE if run.text("dials", "guide_warmup") and not run.text("dials", "teacher") else _WITH_TEACHER,
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
    found = []
    half = run.steps[len(run.steps) // 2 :]
    norms = np.array([s.grad_norm for s in half])
    norms = norms[np.isfinite(norms)]
    if len(norms) >= 10 and (peak := float(norms.max())) > 10 * (middle := float(np.median(norms))):
        found.append(f"the gradient norm rose to {figure(peak)} from about {figure(middle)}")
    parts = [float(part.mean()) for part in np.array_split(losses_of(run), 10)]
    best = int(np.argmin(parts))
    if (worst := max(parts[best:])) > 1.1 * parts[best]:
        found.append(f"the loss rose from {figure(parts[best])} to {figure(worst)}")
    if run.steps[-1].skipped > 0:
        found.append(f"{run.steps[-1].skipped:.0f} updates were skipped")
    return found
