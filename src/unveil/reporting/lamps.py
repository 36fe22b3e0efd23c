"""The verdict on a run in two lamps: how its optimisation went, and what its features are worth beside baselines.

The report, `unveil pretrain` and `unveil evaluate` say it with these words. docs/looking.md explains the colours.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..runs.console import duration
from .comparisons import FEATURE_BASELINES, Comparison, comparisons, in_order, numbers, relation
from .loss_curve import LEVELS, failed, skipped_updates, spikes, still_falling, too_short, went_back
from .markup import counted
from .outlook import outlook
from .run_record import Evaluation, RunRecord
from .verdict import OPTIMISATION, Check, measures, overfitting

_STATES: dict[Check, str] = {failed: "failed", overfitting: "over-fitting"}  # of a check that warns; others: unstable
_EARLY = (failed, still_falling, too_short)  # of these checks a note means that training is not at its end


@dataclass(frozen=True)
class Lamp:
    """One of the two: its name and state, its colour (a level of a verdict; `note` is grey), numbers and advice."""

    name: str
    state: str
    level: str
    sentence: str
    advice: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (f"{self.name}: {self.state}.", self.sentence, self.advice)))


def lamps(run: RunRecord) -> tuple[Lamp, Lamp]:
    """The lamps of a run: optimisation, then features."""
    return (how := optimisation(run)), features(run.evaluations, run, how)


def last_lines(run: RunRecord) -> list[str]:
    """What the terminal says of a run at its end: its lamps, and what happened on the way."""
    both = lamps(run)
    happened = [verdict.sentence for check in (went_back, skipped_updates, spikes) if (verdict := check(run))]
    return [*(sentence for sentence in happened if sentence not in both[0].sentence), *map(str, both)]


def headline(both: Iterable[Lamp]) -> Lamp:
    """Both lamps in one sentence, in the graver of their colours."""
    both = list(both)
    sentence = "; ".join(f"{lamp.name} {lamp.state}" for lamp in both)
    return Lamp("", "", min((lamp.level for lamp in both), key=LEVELS.index), f"{sentence[0].upper()}{sentence[1:]}.")


def optimisation(run: RunRecord) -> Lamp:
    """Healthy, early (too few steps, or a loss that still falls), or what warns: unstable, over-fitting, failed.

    Of imported weights it says that they were trained elsewhere.
    """
    if is_imported(run):
        sentence = "These weights were imported; nothing is known of their training."
        return Lamp("optimisation", "elsewhere", "note", sentence)
    results = [(check, verdict) for check in OPTIMISATION if (verdict := check(run))]
    results.sort(key=lambda result: LEVELS.index(result[1].level))
    for check, verdict in results:
        if verdict.level in ("problem", "warning"):
            state = _STATES.get(check, "unstable")
            return Lamp("optimisation", state, verdict.level, verdict.sentence, verdict.advice)
    early = [verdict for check, verdict in results if check in _EARLY]
    if early:
        advice = early[0].advice
        return Lamp("optimisation", "early", "note", " ".join(verdict.sentence for verdict in early), advice)
    return Lamp("optimisation", "healthy", "ok", measures(run))


def features(evaluations: Sequence[Evaluation], run: RunRecord | None = None, how: Lamp | None = None) -> Lamp:
    """Grey until measured beside baselines, green above raw pixels and the untrained encoder in every protocol.

    Red where no protocol is above the untrained encoder and one is below a baseline; amber otherwise. Differences
    count beyond three standard errors. `run` is None for an encoder without a run.
    """
    each = [comparison for evaluation in in_order(evaluations) for comparison in comparisons(evaluation)]
    if not each:
        named = "ENCODER" if run is None else shlex.quote(str(run.path))
        command = f"`unveil evaluate {named} --data LABELLED_IMAGES` "
        state = "measured without baselines" if any(e.accuracy() >= 0 for e in evaluations) else "not measured"
        return Lamp("features", state, "note", "", f"{command}compares them with raw pixels and the untrained encoder.")
    groups = [list(group) for _, group in groupby(each, key=lambda c: c.title)]
    level, state, sentence = _level(each), _state(groups), f"{'; '.join(map(numbers, groups))}."
    if any(not c.has_error for c in each):
        sentence += " Where no ± is given, the error is not known and the sign alone counts."
    if level == "note":
        sentence += " Not measured: raw pixels and the untrained encoder beside each other, with an error."
    advice = _missing(run, how, groups) if run and how and level in ("problem", "warning") else ""
    return Lamp(
        "features", state, level, sentence if sentence[1] == "-" else sentence[0].upper() + sentence[1:], advice
    )


def is_imported(run: RunRecord) -> bool:
    """Whether `unveil import` made the folder, and nothing was trained in it."""
    return run.text("status") == "imported"


def _level(each: Sequence[Comparison]) -> str:
    if all(c.side > 0 for c in each):
        return "ok" if {c.baseline for c in each if c.has_error}.issuperset(FEATURE_BASELINES) else "note"
    has_learned = any(c.side > 0 for c in each if c.baseline != "pixels")
    return "problem" if not has_learned and any(c.side < 0 for c in each) else "warning"


def _state(groups: Sequence[Sequence[Comparison]]) -> str:
    """How the features compare, with the protocols where they do not agree."""
    titles: dict[str, list[str]] = {}
    for group in groups:
        titles.setdefault(relation(group), []).append(group[0].title)
    if len(titles) == 1:
        return next(iter(titles))
    return "; ".join(f"{words} by {' and '.join(names)}" for words, names in titles.items())


def _missing(run: RunRecord, how: Lamp, groups: Sequence[Sequence[Comparison]]) -> str:
    """What the features lack: a sound optimisation, images, or most often updates, and then how long these take."""
    if how.level in ("problem", "warning"):
        return {
            "over-fitting": "Missing: images, for the run over-fits.",
            "failed": "Missing: a run that comes to its end.",
        }.get(how.state, "Missing: a stable optimisation.")
    if is_imported(run):
        return (
            f"`unveil pretrain mae --data YOUR_IMAGES --init-from {shlex.quote(str(run.path))}` trains these weights on"
            " images of your own."
        )
    made = run.steps[-1].step if run.steps else 0
    views = run.number("options", "batch_size") * made
    facts = [counted(made, "update")] + ([f"{views:,.0f} views"] if views > 0 else [])
    these = f"these are {' of '.join(facts)} in {duration(run.seconds)}"
    return f"Missing: updates, most often; {these}. {outlook(run, groups)}"
