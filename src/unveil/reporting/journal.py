"""`metrics.jsonl` of a run: its steps, its validations, and what happened on the way; NaN: not known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .run_files import NAN, mapping, number, read_lines

MOST_STEPS = 5_000  # that are read of a log; a run writes about a thousand
_STEP = re.compile(r'"step": (\d+)[,}]')
L = TypeVar("L", bound="LogLine")


def numbers(value: Any) -> dict[str, float]:
    """The values of a mapping as floats; empty for what is none."""
    return {str(k): number(v) for k, v in mapping(value).items()}


@dataclass(frozen=True)
class LogLine:
    """A line of `metrics.jsonl`, with the time in seconds since the start; NaN = not logged."""

    step: int
    epoch: float = NAN
    time: float = NAN


@dataclass(frozen=True)
class Step(LogLine):
    """One logged training step; `data_wait` is a share in [0, 1]."""

    loss: float = NAN
    losses: Mapping[str, float] = field(default_factory=dict)
    lr: float = NAN
    grad_norm: float = NAN
    images_per_second: float = NAN
    data_wait: float = NAN
    memory_mb: float = NAN
    skipped: float = NAN
    spikes: float = NAN


@dataclass(frozen=True)
class Signals(LogLine):
    """Label-free measures of the features on held-out images."""

    heldout_loss: float = NAN
    rankme: float = NAN
    feature_std: float = NAN
    feature_dim: float = NAN
    attention: Mapping[str, float] = field(default_factory=dict)
    not_computable: Sequence[str] = ()  # names of these measures, of weights that have diverged


def read_metrics(path: Path, remarks: list[str]) -> tuple[list[Step], list[Signals], list[Mapping[str, Any]]]:
    """The log as the run went in the end: where a continued run went back, what it had logged beyond is dropped."""
    steps: list[Step] = []
    signals: list[Signals] = []
    events: list[Mapping[str, Any]] = []
    for entry in read_lines(path, remarks, partial(_thinned, remarks=remarks)):
        at = int(number(entry["step"]))
        if entry.get("kind") == "step":
            if steps and at <= steps[-1].step:
                steps, signals = [s for s in steps if s.step < at], [s for s in signals if s.step < at]
            steps.append(_log_line(Step, entry, "losses"))
        elif entry.get("kind") == "signals":
            if signals and at <= signals[-1].step:
                signals = [s for s in signals if s.step < at]
            signals.append(_log_line(Signals, entry, "attention"))
        else:
            events.append(entry)
    return steps, signals, events


def _thinned(lines: list[str], remarks: list[str]) -> list[str]:
    """At most about `MOST_STEPS` steps, evenly spread with the first and the last, of a long log; all other lines.

    Steps that a continued run has gone back behind are left out first: what follows has a step as early, or earlier.
    """
    is_step = np.array(['"kind": "step"' in line for line in lines], bool)
    if is_step.sum() <= MOST_STEPS:
        return lines
    found = map(_STEP.search, compress(lines, is_step))
    steps = np.array([int(match[1]) if match else -1 for match in found], np.int64)
    last = np.iinfo(np.int64).max
    earliest = np.minimum.accumulate(np.where(steps < 0, last, steps)[::-1])[::-1]  # from each line on
    standing = np.flatnonzero((steps >= 0) & (steps < np.append(earliest[1:], last)))
    every = -(-len(standing) // MOST_STEPS)
    if every > 1:
        remarks.append(f"metrics.jsonl: of {len(standing):,} logged steps one in {every} is read.")
    chosen = ~is_step
    chosen[np.flatnonzero(is_step)[[*standing[::every], *standing[-1:]]]] = True
    return list(compress(lines, chosen))


def _log_line(kind: type[L], entry: Mapping[str, Any], nested: str) -> L:
    values: dict[str, Any] = {name: number(entry.get(name)) for name in kind.__dataclass_fields__}
    values |= {"step": int(values["step"]), nested: numbers(entry.get(nested))}
    if kind is Signals:
        names = entry.get("not_computable")
        values["not_computable"] = tuple(map(str, names)) if isinstance(names, list) else ()
    return kind(**values)
