"""What a run's results support: each measure beside its best baseline, over the same test samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.outcomes import STANDARD_ERRORS, Difference, paired, read_outcomes
from ..evaluation.types import THIS_RUN
from ..reporting.overview import Shown, Summary
from ..runs.console import table

NAMES = {"pixels": "raw pixels", "training mean by place": "training mean"}


@dataclass(frozen=True)
class Claim:
    """A metric of a protocol in words, and the baselines that it has to beat; missing ones are left out.

    `part` is what it is evidence of. `form` writes its value, `unit` a difference; `scale` are units of one.
    """

    part: str
    words: str
    protocol: str
    metric: str
    baselines: tuple[str, ...]
    form: str = "{:.1%}"
    unit: str = "points"
    scale: float = 100.0


@dataclass(frozen=True)
class Finding:
    """A claim with its value, those of the baselines, and the difference to the best of them (None: not known)."""

    claim: Claim
    metric: str
    value: float
    baselines: Mapping[str, float]
    best: str
    difference: Difference | None

    @property
    def holds(self) -> bool:
        """Whether it is above the best baseline by more than three standard errors."""
        return self.difference is not None and self.difference.is_gain

    @property
    def row(self) -> list[str]:
        """Words, value, baselines, and by how much it is above the best, with three standard errors."""
        form, scale = self.claim.form.format, self.claim.scale
        others = ", ".join(f"{NAMES.get(name, name)} {form(value)}" for name, value in self.baselines.items())
        gain = "-"
        if self.difference is not None:
            half = STANDARD_ERRORS * self.difference.error
            gain = f"{scale * self.difference.mean:+.2f} ± {scale * half:.2f} {self.claim.unit}"
        return [self.claim.words, form(self.value), others, gain, "yes" if self.holds else "not enough time"]


def find(run: Path, claims: Sequence[Claim]) -> list[Finding]:
    """The findings of a run for the claims that it was measured for."""
    return [finding for claim in claims if (finding := _find(run, claim))]


def _find(run: Path, claim: Claim) -> Finding | None:
    file = run / "eval" / f"{claim.protocol}.json"
    if not file.exists():
        return None
    content = json.loads(file.read_text())
    metric = _named(content["metrics"], claim.metric)
    if metric is None:
        return None
    of_all = {name: own[metric] for name in claim.baselines if metric in (own := content["baselines"].get(name, {}))}
    if not of_all:
        return None
    best = max(of_all, key=lambda name: of_all[name])
    outcomes = read_outcomes(run, claim.protocol)
    own, others = (outcomes.get(name, {}).get(metric) for name in (THIS_RUN, best))
    difference = None if own is None or others is None else paired(own, others)
    return Finding(claim, metric, content["metrics"][metric], of_all, best, difference)


def _named(metrics: Mapping[str, float], metric: str) -> str | None:
    """The metric, or the one of several that begins with its name: `accuracy_` is that of whatever share of labels."""
    is_prefix = metric.endswith("_")
    return next((name for name in metrics if name == metric or (is_prefix and name.startswith(metric))), None)


def summary(run: Path, claims: Sequence[Claim]) -> str:
    """The values of a run's findings, in one line."""
    return "; ".join(" ".join(finding.row[:2]) for finding in find(run, claims))


def conclusion(findings: Sequence[Finding]) -> str:
    """The findings as a table, and in a sentence what they carry."""
    head = ["", "this run", "beside", "above the best, ± three standard errors", "learned"]
    return "\n".join([table([head, *(finding.row for finding in findings)], "lllll"), sentence(findings)])


def sentence(findings: Sequence[Finding]) -> str:
    """What the findings carry, in words."""
    if missing := [finding.claim.words for finding in findings if not finding.holds]:
        return f"Not enough time for {', '.join(missing)}: train longer with --minutes."
    return "Each is above its best baseline by more than three standard errors of the held-out scenes."


def first_screen(title: str, under: str, findings: Mapping[str, Sequence[Finding]], parts: Sequence[str]) -> Summary:
    """The findings of runs, by their names, as the first screen of a report: the parts in this order."""
    groups: dict[str, list[Shown]] = {part: [] for part in parts}
    for run, of_run in findings.items():
        for finding in of_run:
            claim = finding.claim
            shown = Shown(claim.words, run, claim.protocol, finding.metric, (*finding.baselines,))
            groups[claim.part].append(shown)
    each = [finding for of_run in findings.values() for finding in of_run]
    *others, last = [f"{part[0].lower()}{part[1:]}" for part in groups]
    learned = all(finding.holds for finding in each)
    said = f"It learned: it {', '.join(others)}, and {last}. " if learned else ""
    return Summary(title, under, said + sentence(each), learned, groups)


def is_above(finding: Finding) -> bool:
    """Whether the value is above every baseline at all, sure or not."""
    return finding.value > max(finding.baselines.values(), default=-math.inf)
