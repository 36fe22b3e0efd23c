"""What came out of a study: each run's figures, read from its folder, and rows with intervals and tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ...evaluation.statistics import Comparison, compare, estimate, holm
from .design import ScaleName, Study
from .jobs import Job
from .learning_curves import learning_curves, time_to_target

SURE = 0.05  # a corrected p below which a difference is called one
ATTENDED = ("student_foreground", "student_evenness", "rank_correlation", "hidden_attention")  # over training
_CURVES = ("heldout_loss", "rankme", "feature_std")


def gather(
    study: Study, scale: ScaleName, jobs: Sequence[Job], folder: Path, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Everything about a study as JSON: what it asked, its runs, and the rows of its table."""
    runs = [read_outcome(job, folder, failed.get(job.name)) for job in jobs]
    at = study.scales[scale]
    return {
        "question": study.question,
        "note": study.note,
        "scale": scale,
        "baseline": study.baseline,
        "seeds": list(at.seeds),
        "settings": [{"name": s.name, "data": s.data, "labelled": s.labelled or s.data} for s in at.settings],
        "arms": [
            {"name": arm.name, "recipe": arm.recipe, "dials": {n: str(v) for n, v in arm.dials.items()}}
            for arm in study.arms_at(scale)
        ],
        "runs": runs,
        "rows": [row for s in at.settings for row in arm_rows(runs, s.name, study.baseline)],
        "references": [row for s in at.settings for row in reference_rows(runs, s.name, study.baseline)],
        "along": [row for s in at.settings for row in learning_curves(runs, s.name, study.baseline, _measured(runs))],
        "times": time_to_target(runs, [s.name for s in at.settings], study.time_to) if study.time_to else [],
    }


def _measured(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured along some run, but for what every run logs."""
    return [name for name in dict.fromkeys(name for run in runs for name in run["curves"]) if name not in _CURVES]


def read_outcome(job: Job, folder: Path, failed: str | None = None) -> dict[str, Any]:
    """One run's figures; what is not there yet is left out."""
    run = folder / "runs" / job.name
    facts = _read(run / "run.json")
    lines = _journal(run / "metrics.jsonl")
    steps = [line for line in lines if line.get("kind") == "step"]
    signals = [line for line in lines if line.get("kind") == "signals"]
    metrics: dict[str, float] = {}
    references: dict[str, dict[str, float]] = {}
    curves = {name: [[s["epoch"], s[name]] for s in signals if name in s] for name in _CURVES}
    for asked in job.evaluate:
        if (epoch := asked.get("at_epoch")) is not None:
            for protocol in asked["protocol"]:
                found = _read(run / "eval" / f"epoch-{epoch:g}" / f"{protocol}.json")
                for name, value in _metrics(protocol, found.get("metrics", {})).items():
                    curves.setdefault(name, []).append([epoch, value])
            continue
        for protocol in asked["protocol"]:
            found = _read(run / "eval" / f"{protocol}.json")
            metrics |= _metrics(protocol, found.get("metrics", {}))
            for who, its in found.get("baselines", {}).items():
                references.setdefault(who, {}).update(_metrics(protocol, its))
    metrics |= analysed(run / "analysis")
    for point in _read(run / "analysis" / "attention.json").get("checkpoints", ()):
        for name in (name for name in ATTENDED if name in point):
            curves.setdefault(f"attention {name.replace('_', ' ')}", []).append([point["epoch"], point[name]])
    if signals:
        metrics |= {f"signals {name}": signals[-1][name] for name in ("rankme",) if name in signals[-1]}
    return {
        "name": job.name,
        "arm": job.arm,
        "setting": job.setting,
        "seed": job.seed,
        "status": facts.get("status", "not begun"),
        "error": failed,
        "metrics": metrics,
        "references": references,
        "seconds": facts.get("seconds"),
        "images_per_second": median(s["images_per_second"] for s in steps) if steps else None,
        "memory_mb": max(s["memory_mb"] for s in steps) if steps else None,
        "epochs": steps[-1]["epoch"] if steps else None,
        "curves": curves,
        "seconds_at": [[s["epoch"], s["time"]] for s in steps],
    }


def analysed(folder: Path) -> dict[str, float]:
    """What `unveil analyze` has found, as figures: attention at the end, a decoder's split and parts, layers.

    The decoder's attention from masked tokens is told summed over blocks and heads, as CrossMAE's paper prints it
    (1.42 to visible, 0.39 to masked), as the mean per pair, and as the share that goes to visible tokens.
    """
    found: dict[str, float] = {}
    attention = _read(folder / "attention.json")
    for name, value in (attention.get("checkpoints") or [{}])[-1].items():
        if name not in ("step", "epoch") and isinstance(value, (int, float)):
            found[f"attention {name.replace('_', ' ')}"] = value
    for decoder in attention.get("decoders", ()):
        for what in ("summed", "mean"):
            for where, value in zip(("visible", "masked"), decoder.get(what, ()), strict=False):
                found[f"decoder {what} to {where}"] = value
        if isinstance(decoder.get("mass_on_visible"), (int, float)):
            found["decoder mass on visible"] = decoder["mass_on_visible"]
    for decoder in _read(folder / "blocks.json").get("decoders", ()):
        for k, part in enumerate(decoder.get("parts", ())):
            who = f"block {k}" if k else "mask tokens"
            found |= {f"blocks {what} of {who}": part[what] for what in ("share", "detail") if what in part}
    for file in sorted(folder.glob("features-*.json")):
        for k, row in enumerate(_read(file).get("cka", ()), start=1):
            if k <= len(row):
                found[f"features CKA of layer {k}"] = row[k - 1]
    return found


def arm_rows(runs: Sequence[Mapping[str, Any]], setting: str, baseline: str) -> list[dict[str, Any]]:
    """A row per metric and arm: mean and interval, the difference to the baseline, its p, and what that carries."""
    here = [run for run in runs if run["setting"] == setting]
    rows = []
    for metric in dict.fromkeys(name for run in here for name in run["metrics"]):
        values = _by_arm(here, metric)
        for arm, row in _compared(values, values.get(baseline, {}), baseline):
            rows.append({"setting": setting, "arm": arm, "metric": metric, **row})
    return rows


def reference_rows(runs: Sequence[Mapping[str, Any]], setting: str, baseline: str) -> list[dict[str, Any]]:
    """A row per metric and reference: raw pixels, the untrained encoder, training from scratch, as those of arms.

    References are measured with the baseline's runs. They ask another question than the arms do, so their p are
    corrected among themselves.
    """
    here = [run for run in runs if run["setting"] == setting]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in here:
        for who, metrics in run["references"].items():
            for metric, value in metrics.items():
                found.setdefault(metric, {}).setdefault(who, {})[run["seed"]] = value
    return [
        {"setting": setting, "who": who, "metric": metric, **row}
        for metric, values in found.items()
        for who, row in _compared(values, _by_arm(here, metric).get(baseline, {}))
    ]


def _by_arm(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[int, float]]:
    """A metric of the arms that have it, by seed."""
    values: dict[str, dict[int, float]] = {}
    for run in (run for run in runs if metric in run["metrics"]):
        values.setdefault(run["arm"], {})[run["seed"]] = run["metrics"][metric]
    return values


def _compared(
    values: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float], itself: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each name's mean, and its difference to the baseline with p, corrected over all names but the baseline's own."""
    compared = {name: compare(own, baseline) for name, own in values.items() if name != itself}
    corrected = holm({name: c.p for name, c in compared.items() if c is not None and c.p is not None})
    for name, own in values.items():
        found = compared.get(name)
        yield (
            name,
            {
                "values": {str(seed): value for seed, value in sorted(own.items())},
                **asdict(estimate(list(own.values()))),
                "difference": found and asdict(found.difference),
                "p": found and found.p,
                "p_holm": corrected.get(name),
                "says": "the baseline" if name == itself else claim(found, corrected.get(name)),
            },
        )


def claim(found: Comparison | None, corrected: float | None) -> str:
    """What a comparison carries, in words, and no more."""
    if found is None:
        return "no seed in common with the baseline: no claim"
    if found.difference.count < 2:
        return "one seed: no interval, no claim"
    if corrected is None:
        return "all pairs differ alike: no test, no claim"
    if corrected >= SURE:
        return "no difference shown"
    return "higher" if found.difference.mean > 0 else "lower"


def _metrics(protocol: str, found: Mapping[str, Any]) -> dict[str, float]:
    """A protocol's figures under its name; half widths of its own intervals are none."""
    return {
        f"{protocol} {name.replace('_', ' ')}": value
        for name, value in found.items()
        if isinstance(value, (int, float)) and not name.startswith("plus_minus")
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _journal(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # the end of a process that was killed
    return lines
