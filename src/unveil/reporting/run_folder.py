"""A run folder, read. Whatever is missing, cut off or of the wrong type is left out and remarked on, never fatal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .run import (
    Evaluation,
    Neighbour,
    NeighbourRow,
    ProbeEpoch,
    ProbeFiles,
    Probes,
    RunRecord,
    Signals,
    Step,
    mapping,
    mappings,
    number,
)


def read_run(path: str | Path) -> RunRecord:
    """Read a run folder. FileNotFoundError or ValueError where there is none, with the runs that lie inside it."""
    folder = Path(path)
    check_run_folder(folder)
    remarks: list[str] = []
    steps, signals = _metrics(folder / "metrics.jsonl", remarks)
    return RunRecord(
        path=folder,
        name=folder.resolve().name,
        info=mapping(_json(folder / "run.json", remarks, needed=True)),
        steps=steps,
        signals=signals,
        evaluations=_evaluations(folder / "eval", remarks),
        probes=_probes(folder / "pictures", remarks),
        neighbours=_neighbours(folder / "pictures", remarks),
        analyses={p.stem: mapping(_json(p, remarks)) for p in sorted((folder / "analysis").glob("*.json"))},
        broken={str(k): str(v) for k, v in mapping(_json(folder / "broken.json", remarks)).items()},
        remarks=remarks,
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its description or its log."""
    return (folder / "run.json").is_file() or (folder / "metrics.jsonl").is_file()


def check_run_folder(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError, with what to do, unless the folder holds a run."""
    if is_run(folder):
        return
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}; a report needs the folder that `unveil pretrain --out` wrote")
    inside = sorted(str(p) for p in folder.iterdir() if p.is_dir() and is_run(p))
    hint = f"these folders inside it are runs: {', '.join(inside[:8])}" if inside else "give the folder of a run"
    raise ValueError(f"{folder} is not a run folder: it has neither run.json nor metrics.jsonl; {hint}")


def _json(path: Path, remarks: list[str], needed: bool = False) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            remarks.append(f"{path.name} is missing.")
    except (OSError, ValueError, RecursionError) as error:
        remarks.append(f"{path.name} could not be read: {error}.")
    return None


def _numbers(value: Any) -> dict[str, float]:
    return {str(k): number(v) for k, v in mapping(value).items()}


def _lines(path: Path, remarks: list[str]) -> Iterator[Mapping[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        remarks.append("metrics.jsonl is missing: nothing was logged yet.")
        return
    unread = 0
    for line in filter(str.strip, lines):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            unread += 1
            continue
        if isinstance(entry, Mapping) and math.isfinite(number(entry.get("step"))):
            yield entry
    if unread:
        remarks.append(f"metrics.jsonl: {unread} line{'s' if unread > 1 else ''} could not be read (cut off?).")


def _metrics(path: Path, remarks: list[str]) -> tuple[list[Step], list[Signals]]:
    """The log as the run went in the end: where a continued run went back, what it had logged beyond is dropped."""
    steps: list[Step] = []
    signals: list[Signals] = []
    for entry in _lines(path, remarks):
        at = int(number(entry["step"]))
        if entry.get("kind") == "step":
            if steps and at <= steps[-1].step:
                steps = [s for s in steps if s.step < at]
                signals = [s for s in signals if s.step < at]
            values = {k: number(entry.get(k)) for k in Step.__dataclass_fields__ if k not in ("step", "losses")}
            steps.append(Step(at, losses=_numbers(entry.get("losses")), **values))
        elif entry.get("kind") == "signals":
            signals = [s for s in signals if s.step < at]
            values = {k: number(entry.get(k)) for k in Signals.__dataclass_fields__ if k not in ("step", "attention")}
            signals.append(Signals(at, attention=_numbers(entry.get("attention")), **values))
    return steps, signals


def _evaluations(folder: Path, remarks: list[str]) -> list[Evaluation]:
    found = []
    for path in sorted(folder.glob("*.json")):
        told = mapping(_json(path, remarks))
        if metrics := _numbers(told.get("metrics")):
            baselines = {str(k): _numbers(v) for k, v in mapping(told.get("baselines")).items()}
            protocol, data = str(told.get("protocol") or path.stem), str(told.get("data") or "")
            details = {str(k): _numbers(v) for k, v in mapping(told.get("details")).items()}
            found.append(Evaluation(protocol, data, metrics, baselines, str(told.get("card") or ""), details))
    return found


def _inside(folder: Path, name: Any) -> Path | None:
    """A picture by its name in an index; a name that leads out of the folder is no picture."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None


def _probes(folder: Path, remarks: list[str]) -> Probes:
    index = mapping(_json(folder / "index.json", remarks))
    names = [str(p.get("name") or i) for i, p in enumerate(mappings(index.get("probes")))]
    epochs = []
    for told in mappings(index.get("epochs")):
        items = {}
        for item in mappings(told.get("items")):
            at = number(item.get("probe"))
            if at in range(len(names)):
                names_of = ("original", "hidden", "reconstructed", "attention")
                original, hidden, reconstructed, attention = (_inside(folder, item.get(name)) for name in names_of)
                more = {str(k): _inside(folder, name) for k, name in mapping(item.get("more")).items()}
                kept = {k: path for k, path in more.items() if path}
                items[int(at)] = ProbeFiles(int(at), original, hidden, reconstructed, attention, kept)
        step = number(told.get("step"))
        if items:
            epochs.append(ProbeEpoch(number(told.get("epoch")), int(step) if math.isfinite(step) else 0, items))
    return Probes(names, epochs, bool(index.get("norm_pix")), str(index.get("note") or ""), mappings(index.get("keys")))


def _neighbours(folder: Path, remarks: list[str]) -> list[NeighbourRow]:
    def label(value: Any) -> str | None:
        return None if value is None else str(value)

    return [
        NeighbourRow(
            _inside(folder, row.get("query")),
            label(row.get("query_label")),
            [
                Neighbour(_inside(folder, n.get("image")), number(n.get("distance")), label(n.get("label")))
                for n in mappings(row.get("neighbours"))
            ],
        )
        for row in mappings(_json(folder / "neighbours.json", remarks))
    ]
