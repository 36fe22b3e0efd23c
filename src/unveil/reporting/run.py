"""The content of a run folder as far as it could be read, in frozen dataclasses; NaN stands for not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAN = math.nan


def number(value: Any) -> float:
    """The value as a float; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return NAN


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list; none where the value is no list."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def protocol_name(protocol: str) -> str:
    """A protocol's title, such as k-NN for knn."""
    return protocol.replace("knn-whitened", "whitened k-NN").replace("knn", "k-NN")


@dataclass(frozen=True)
class Step:
    """One logged training step. `time` in seconds since the start, `data_wait` a share in [0, 1]; NaN = not logged."""

    step: int
    epoch: float = NAN
    time: float = NAN
    loss: float = NAN
    losses: Mapping[str, float] = field(default_factory=dict)
    lr: float = NAN
    grad_norm: float = NAN
    images_per_second: float = NAN
    data_wait: float = NAN
    memory_mb: float = NAN
    skipped: float = NAN


@dataclass(frozen=True)
class Signals:
    """Label-free measures of the features on held-out images; NaN = not measured."""

    step: int
    epoch: float = NAN
    time: float = NAN
    heldout_loss: float = NAN
    rankme: float = NAN
    feature_std: float = NAN
    feature_dim: float = NAN
    attention: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The content of a file `eval/<protocol>.json`."""

    protocol: str
    data: str
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    card: str
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The protocol's title, such as k-NN for knn."""
        return protocol_name(self.protocol)


@dataclass(frozen=True)
class ProbeFiles:
    """The picture files of one probe at one epoch; None = not there."""

    probe: int
    original: Path | None
    hidden: Path | None
    reconstructed: Path | None
    attention: Path | None
    more: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeEpoch:
    """The pictures of all fixed images at one epoch."""

    epoch: float
    step: int
    items: Mapping[int, ProbeFiles]


@dataclass(frozen=True)
class Probes:
    """The fixed images and how they came back, in the order of training."""

    names: Sequence[str] = ()
    epochs: Sequence[ProbeEpoch] = ()
    norm_pix: bool = False
    note: str = ""
    keys: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Neighbour:
    """An image near to a query; `distance` is NaN where not known."""

    image: Path | None
    distance: float = NAN
    label: str | None = None


@dataclass(frozen=True)
class NeighbourRow:
    """A query and its neighbours, nearest first."""

    query: Path | None
    label: str | None
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run folder holds for a report; `remarks` says what is missing or could not be read."""

    path: Path
    name: str
    info: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    signals: Sequence[Signals] = ()
    evaluations: Sequence[Evaluation] = ()
    probes: Probes = field(default_factory=Probes)
    neighbours: Sequence[NeighbourRow] = ()
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def fact(self, *keys: str) -> Any:
        """A value of run.json by its path of keys, or None."""
        value: Any = self.info
        for key in keys:
            value = mapping(value).get(key)
        return value

    def mapping(self, *keys: str) -> Mapping[str, Any]:
        """A part of run.json that has parts of its own, empty where it is missing."""
        return mapping(self.fact(*keys))

    def text(self, *keys: str) -> str:
        """A value of run.json as text, empty where it is missing."""
        value = self.fact(*keys)
        return "" if value is None else str(value)

    def number(self, *keys: str) -> float:
        """A value of run.json as a number, NaN where it is missing."""
        return number(self.fact(*keys))

    @property
    def epochs_done(self) -> float:
        """How far the log goes, in epochs; NaN without a log."""
        return self.steps[-1].epoch if self.steps else NAN

    @property
    def seconds(self) -> float:
        """How long the run took: as run.json says, else until the last logged step."""
        said = self.number("seconds")
        return said if math.isfinite(said) else (self.steps[-1].time if self.steps else NAN)

    @property
    def images_per_second(self) -> float:
        """The median over the log, which a slow first step does not move; NaN without a log."""
        values = sorted(s.images_per_second for s in self.steps if math.isfinite(s.images_per_second))
        return values[len(values) // 2] if values else NAN

    @property
    def final_loss(self) -> float:
        """The mean loss over the last tenth of the log; NaN without a log."""
        values = [s.loss for s in self.steps][-max(1, len(self.steps) // 10) :]
        return sum(values) / len(values) if values else NAN

    @property
    def last_signals(self) -> Signals:
        """The signals as they were measured last; all NaN where none were."""
        return self.signals[-1] if self.signals else Signals(0)
