"""The content of a run folder as far as it can be read, in frozen dataclasses; NaN: not known.

An entry that is missing, cut off or of the wrong type is left out, with a remark; it is no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_high
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..runs.lock import status_of
from ..runs.run_config import current_entries
from .journal import Signals, Step, numbers, read_metrics
from .outcomes import read_outcomes
from .run_files import NAN, is_run, mapping, mappings, number, picture_in, read_json

Files = Mapping[str, Path]  # pictures by name
_MOST_PATCHES = 1 << 14  # of a mask that is drawn


def protocol_name(protocol: str) -> str:
    """A protocol's title, such as k-NN for knn."""
    return protocol.replace("knn-whitened", "whitened k-NN").replace("knn", "k-NN")


@dataclass(frozen=True)
class Evaluation:
    """The content of a file `eval/<protocol>.json`."""

    protocol: str
    data: str
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    card: str
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    outcomes: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)  # of each test sample, by subject
    weights: Mapping[str, Any] = field(default_factory=dict)  # that were measured; empty before they were stored
    shown: Mapping[str, Any] = field(default_factory=dict)  # what is drawn beside the numbers

    def is_of(self, newest: Mapping[str, Any]) -> bool:
        """Whether these weights, as far as both are known, were measured."""
        known = {name: value for name, value in newest.items() if value is not None}
        return all(self.weights.get(name, value) == value for name, value in known.items())

    @property
    def name(self) -> str:
        return protocol_name(self.protocol)

    def accuracy(self, baseline: str | None = None) -> float:
        """The accuracy of the trained encoder or of a baseline, a share in [0, 1]."""
        metrics = self.metrics if baseline is None else self.baselines.get(baseline, {})
        return metrics.get("accuracy", NAN)


@dataclass(frozen=True)
class ProbeEpoch:
    """The picture files of the probes at one epoch: those of each by the names that `pictures.Probe` lists.

    `errors` are those of some pictures, `masks` the hidden patches with their grid of rows and columns.
    """

    epoch: float
    step: int
    items: Mapping[int, Files]
    errors: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    masks: Mapping[int, tuple[Sequence[int], tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Probes:
    """The fixed images and their reconstructions, in the order of training."""

    names: Sequence[str] = ()
    epochs: Sequence[ProbeEpoch] = ()
    norm_pix: bool = False
    note: str = ""
    keys: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Neighbour:
    """A query, or an image near to one; `distance` is NaN where not known, `alike` counts its near-duplicates."""

    image: Path | None
    distance: float = NAN
    label: str | None = None
    alike: int = 0


@dataclass(frozen=True)
class NeighbourRow:
    """A query, the nearest images by features, and those by colour alone; nearest first."""

    query: Neighbour
    neighbours: Sequence[Neighbour]
    by_colour: Sequence[Neighbour] = ()


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run folder holds for a report; `remarks` says what is missing or could not be read."""

    path: Path
    name: str
    info: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    signals: Sequence[Signals] = ()
    events: Sequence[Mapping[str, Any]] = ()  # spikes of the loss, and returns to earlier checkpoints
    evaluations: Sequence[Evaluation] = ()
    earlier: Mapping[int, Sequence[Evaluation]] = field(default_factory=dict)  # of weights on the way, by their step
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
        """A mapping in run.json, empty where it is missing."""
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
        total = self.number("seconds")
        return total if math.isfinite(total) else (self.steps[-1].time if self.steps else NAN)

    @property
    def images_per_second(self) -> float:
        """The median over the log, which a slow first step does not move; NaN without a log."""
        values = [s.images_per_second for s in self.steps if math.isfinite(s.images_per_second)]
        return median_high(values) if values else NAN

    @property
    def final_loss(self) -> float:
        """The mean loss over the last tenth of the log; NaN without a log."""
        values = [s.loss for s in self.steps][-max(1, len(self.steps) // 10) :]
        return sum(values) / len(values) if values else NAN

    @property
    def last_signals(self) -> Signals:
        """The signals as they were measured last; all NaN where none were."""
        return self.signals[-1] if self.signals else Signals(0)


def read_run(
    path: str | Path, info: Mapping[str, Any] | None = None, weights: Mapping[str, Any] | None = None
) -> RunRecord:
    """Read a run folder. FileNotFoundError or ValueError where there is none.

    `info`, of its `run.json`, and `weights`, steps and checksums of its checkpoints, may have been read already.
    """
    folder = Path(path)
    _check_run_folder(folder)
    remarks: list[str] = []
    steps, signals, events = read_metrics(folder / "metrics.jsonl", remarks)
    content = current_entries(mapping(read_json(folder / "run.json", remarks, needed=True) if info is None else info))
    newest, evaluations = _newest_weights(folder, content, weights or {}), read_evaluations(folder / "eval", remarks)
    others = [e for e in evaluations if not e.is_of(newest)]
    remarks += [
        f"The result of {e.name} is of other weights, of step {e.weights.get('step')}; `unveil evaluate` renews it."
        for e in others
    ]
    return RunRecord(
        path=folder,
        name=folder.resolve().name,
        info={**content, "status": status_of(folder, content)} if "status" in content else content,
        steps=steps,
        signals=signals,
        events=events,
        evaluations=[evaluation for evaluation in evaluations if evaluation.is_of(newest)],
        earlier=_earlier(folder / "eval", others, remarks),
        probes=_probes(folder / "pictures", remarks),
        neighbours=_neighbours(folder / "pictures", remarks),
        analyses={p.stem: mapping(read_json(p, remarks)) for p in sorted((folder / "analysis").glob("*.json"))},
        broken={str(k): str(v) for k, v in mapping(read_json(folder / "broken.json", remarks)).items()},
        remarks=remarks,
    )


def _newest_weights(folder: Path, info: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The step and the checksum of the newest weights, as far as they are known."""
    steps = [f.name.removeprefix("step-") for f in (folder / "checkpoints").glob("step-*")]
    there, last = max(filter(str.isdecimal, steps), default=None), number(info.get("last_checkpoint"))
    if there is None or int(there) < last:
        return {"step": int(last)} if math.isfinite(last) else {}
    if known.get("step") == int(there):
        return dict(known)
    state = mapping(read_json(folder / "checkpoints" / f"step-{there}" / "state.json", []))
    return {
        "step": int(there),
        "checksum": state.get("weights") or mapping(state.get("checksums")).get("model.safetensors"),
    }


def _check_run_folder(folder: Path) -> None:
    if is_run(folder):
        return
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}; a report needs the folder that `unveil pretrain --out` wrote")
    raise ValueError(
        f"{folder} is not a run folder: it has neither run.json nor metrics.jsonl, and no run lies below it; give the"
        " folder of a run"
    )


def read_evaluations(folder: Path, remarks: list[str]) -> list[Evaluation]:
    """The results in a folder that `unveil evaluate` wrote, in the order of their names."""
    evaluations = []
    for path in sorted(folder.glob("*.json")):
        content = mapping(read_json(path, remarks))
        if metrics := numbers(content.get("metrics")):
            baselines = {str(k): numbers(v) for k, v in mapping(content.get("baselines")).items()}
            protocol, data = str(content.get("protocol") or path.stem), str(content.get("data") or "")
            details = {str(k): numbers(v) for k, v in mapping(content.get("details")).items()}
            card, settings = str(content.get("card") or ""), dict(mapping(content.get("settings")))
            settings |= {key: content.get(key) for key in ("pool", "test_data")}
            outcomes = _outcomes(folder, path.stem, remarks)
            weights, shown = dict(mapping(content.get("weights"))), dict(mapping(content.get("shown")))
            evaluations.append(
                Evaluation(protocol, data, metrics, baselines, card, details, settings, outcomes, weights, shown)
            )
    return evaluations


def _outcomes(folder: Path, protocol: str, remarks: list[str]) -> Mapping[str, Mapping[str, np.ndarray]]:
    run, place = (folder.parent, "") if folder.name == "eval" else (folder.parents[1], folder.name)
    try:
        return read_outcomes(run, protocol, place)
    except (OSError, ValueError, BadZipFile) as error:
        remarks.append(f"outcomes/{protocol}.npz could not be read: {error}.")
        return {}


def _earlier(folder: Path, others: list[Evaluation], remarks: list[str]) -> dict[int, list[Evaluation]]:
    """The results of weights on the way, by their step: of those that were kept, and `others` of the run before."""
    by_step: dict[int, list[Evaluation]] = {}
    for evaluation in others:
        if math.isfinite(step := number(evaluation.weights.get("step"))):
            by_step.setdefault(int(step), []).append(evaluation)
    for path in folder.glob("epoch-*"):
        for evaluation in read_evaluations(path, remarks):
            if math.isfinite(step := number(evaluation.settings.get("step"))):
                by_step.setdefault(int(step), []).append(evaluation)
    return dict(sorted(by_step.items()))


def _probes(folder: Path, remarks: list[str]) -> Probes:
    index = mapping(read_json(folder / "index.json", remarks))
    names = [str(p.get("name") or i) for i, p in enumerate(mappings(index.get("probes")))]
    epochs = []
    for epoch in mappings(index.get("epochs")):
        items, errors, masks = {}, {}, {}
        for item in mappings(epoch.get("items")):
            at = number(item.get("probe"))
            if at in range(len(names)):
                files = {k: picture_in(folder, name) for k, name in {**item, **mapping(item.get("more"))}.items()}
                items[int(at)] = {k: path for k, path in files.items() if path}
                errors[int(at)] = numbers(item.get("errors"))
                if mask := _mask(item):
                    masks[int(at)] = mask
        step = number(epoch.get("step"))
        if items:
            place = int(step) if math.isfinite(step) else 0
            epochs.append(ProbeEpoch(number(epoch.get("epoch")), place, items, errors, masks))
    return Probes(names, epochs, bool(index.get("norm_pix")), str(index.get("note") or ""), mappings(index.get("keys")))


def _mask(item: Mapping[str, Any]) -> tuple[list[int], tuple[int, int]] | None:
    """The hidden patches of a picture and their grid; None where they are not stored, or are of no grid."""
    patches, grid = item.get("hidden_patches"), item.get("grid")
    if not (isinstance(patches, list) and isinstance(grid, list) and len(grid) == 2):
        return None
    rows, columns = (int(n) if math.isfinite(n) else 0 for n in map(number, grid))
    ids = [int(n) for n in map(number, patches) if math.isfinite(n)]
    is_sound = 0 < rows * columns <= _MOST_PATCHES and rows > 0 and all(0 <= n < rows * columns for n in ids)
    return (ids, (rows, columns)) if ids and is_sound else None


def _neighbours(folder: Path, remarks: list[str]) -> list[NeighbourRow]:
    def neighbour(image: Any, label: Any, distance: Any = NAN, alike: Any = 0) -> Neighbour:
        copies = number(alike)
        name = None if label is None else str(label)
        return Neighbour(picture_in(folder, image), number(distance), name, int(copies) if 0 < copies < 1e9 else 0)

    def neighbours(of: Any) -> list[Neighbour]:
        return [neighbour(n.get("image"), n.get("label"), n.get("distance"), n.get("alike")) for n in mappings(of)]

    return [
        NeighbourRow(
            neighbour(row.get("query"), row.get("query_label")),
            neighbours(row.get("neighbours")),
            neighbours(row.get("by_colour")),
        )
        for row in mappings(read_json(folder / "neighbours.json", remarks))
    ]
