"""`unveil demo`: the whole way on images made here. Render scenes, pretrain four ways, evaluate, report."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..evaluation.results import Result
from ..reporting import write_report
from ..runs.atomic import write_json
from ..runs.console import duration, log
from ..runs.folder import check_writable
from ..runs.hardware import num_cores
from .scene_files import render_scenes
from .scenes import CLASSES, SceneSource
from .study.jobs import Job
from .study.schedule import Schedule, write_jobs

SCENE_SIZE = 64  # pixels of a rendered scene
# So small an encoder and so few tokens that a minute on one core shows it every scene several times
SHAPE: dict[str, Any] = {"size": "nano", "image_size": [48], "patch": 8}
CROSS: dict[str, Any] = {"decoder": "cross", "blend": "linear", "predicted": 0.25}  # so that a minute holds more steps
MEASURES = {"knn": "k-NN", "knn-whitened": "whitened k-NN", "linear": "linear"}
FEWEST = 20  # scenes: two of every class
SURE = 3.0  # standard errors that a difference must exceed before it is called one
TOLD_SECONDS = 10.0  # between two words on how far the recipes are


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """What is pretrained, with its data and its own dials; each may build on the runs before it."""
    maps = folder / "scenes"
    colour = str(maps / "rgb")
    return {
        "mae": {"data": colour},
        "crossmae": {"data": colour},
        "cmtmae": {"data": colour, "teacher": str(folder / "runs" / "crossmae"), **CROSS},
        "multimae-attention": {"data": str(maps), "modalities": ["rgb", "depth", "semseg"]},
    }


def demo(out: str = "runs/demo", *, minutes: float = 1.0, scenes: int = 3000, seed: int = 0) -> Path:
    """Pretrain four recipes on rendered scenes, measure all on scenes of another seed; returns the report's path.

    MAE and CrossMAE see the pictures alone; CMT-MAE has the CrossMAE of this demo as its teacher; guided MultiMAE sees
    depth and classes too. On a processor two run side by side, for models as small as these leave half of it idle. A
    demo that was stopped goes on where it was; one that is finished begins anew and keeps only its scenes.

    out: the folder of the demo: the scenes, a run folder per recipe, the report
    minutes: how long to train each recipe
    scenes: how many scenes to learn from; as many are held out
    seed: of scenes, initialisation, order, views and masks
    """
    if scenes < FEWEST:
        raise ValueError(f"--scenes {scenes} are too few to learn from and to measure; give {FEWEST} or more")
    if minutes <= 0:
        raise ValueError(f"--minutes {minutes:g} leaves no time to train; give more than 0")
    began = time.monotonic()
    folder = Path(out).expanduser()
    begin(folder, {"minutes": minutes, "scenes": scenes, "seed": seed})
    try:
        return _demo(folder, minutes, scenes, seed, began)
    except KeyboardInterrupt:
        log("the demo goes on from here: the same command again")
        raise


def _demo(folder: Path, minutes: float, scenes: int, seed: int, began: float) -> Path:
    render_scenes(SceneSource(scenes, SCENE_SIZE, seed), folder / "scenes")
    render_scenes(SceneSource(scenes, SCENE_SIZE, seed + 1), folder / "held-out-scenes")
    jobs = _jobs(folder, minutes, seed)
    write_jobs(folder, jobs, "auto")
    schedule = Schedule(folder, jobs, None if torch.cuda.is_available() else min(2, num_cores()), TOLD_SECONDS)
    log(f"pretraining and evaluating {', '.join(job.name for job in jobs)}; all they say is in {folder / 'logs'}")
    schedule.run(lambda job: _figures(folder / "runs" / job.name))
    if schedule.failed:
        name, why = next(iter(schedule.failed.items()))
        raise ValueError(f"{name} failed: {why}; the same command tries it again")
    report = write_report([folder / "runs" / job.name for job in jobs], folder / "report.html")
    log(f"all of it took {duration(time.monotonic() - began)}")
    plain, whitened = (
        {job.name: _result(folder / "runs" / job.name, measure) for job in jobs} for measure in ("knn", "knn-whitened")
    )
    print(conclusion(plain, whitened))
    print(f"report: {report}")
    return report


def _jobs(folder: Path, minutes: float, seed: int) -> list[Job]:
    """Each recipe's run and what is measured of it; CMT-MAE waits for its teacher."""
    measured = {
        "data": str(folder / "scenes" / "rgb"),
        "test_data": str(folder / "held-out-scenes" / "rgb"),
        "protocol": [*MEASURES],
        "pool": "both",
        "seed": seed,
    }
    return [
        Job(
            name=name,
            arm=name,
            setting="",
            seed=seed,
            recipe=name,
            pretrain={"minutes": minutes, "seed": seed, **own, **SHAPE},
            evaluate=[{**measured, "baselines": name == "mae"}],  # an untrained ViT knows as much under any recipe
            analyze=[],
            needs=["crossmae"] if name == "cmtmae" else [],
        )
        for name, own in recipes(folder).items()
    ]


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder ready: an unfinished demo of these settings stays, a finished one keeps its scenes alone.

    Raises ValueError when the folder holds something else.
    """
    check_writable(folder)
    marker = folder / "demo.json"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise ValueError(f"{folder} holds files that are no demo; give another --out")
    before = json.loads(marker.read_text()) if marker.exists() else {}
    is_same = before == dict(settings)
    if not is_same or (folder / "report.html").exists():
        for old in ["runs", "jobs", "logs", "locks", *([] if is_same else ["scenes", "held-out-scenes"])]:
            shutil.rmtree(folder / old, ignore_errors=True)
        (folder / "report.html").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, settings)


def _result(run: Path, protocol: str) -> Result:
    return Result(**json.loads((run / "eval" / f"{protocol}.json").read_text()))


def _figures(run: Path) -> str:
    """What a run that has just been measured has reached."""
    found = {told: _result(run, protocol).metrics["accuracy"] for protocol, told in MEASURES.items()}
    return ", ".join(f"{told} {100 * accuracy:.1f} %" for told, accuracy in found.items())


def conclusion(plain: Mapping[str, Result], whitened: Mapping[str, Result]) -> str:
    """What the k-NN accuracies carry, and no more: each run beside the untrained encoder, and beside raw pixels.

    Judged by whitened features: a minute of training shows there first.
    """
    one = next(iter(whitened.values()))
    images = int(str(one.settings["test_images"]))
    lines = [
        f"k-NN accuracy on {images:,} held-out scenes: {_told(plain)}.",
        f"With whitened features: {_told(whitened)}; chance {100 / len(CLASSES):.1f} %.",
    ]
    untrained = one.baselines["untrained"]["accuracy"]
    for name, result in whitened.items():
        learned = result.metrics["accuracy"]
        error = math.sqrt((learned * (1 - learned) + untrained * (1 - untrained)) / images)
        if learned > untrained:
            by = (learned - untrained) / error
            told = f"above the untrained encoder{'' if by > SURE else ', but no more than chance may explain'}"
            lines.append(f"{name} is {told} (the difference is {by:.1f} standard errors).")
        else:
            lines.append(f"{name} is no better than the untrained encoder.")
    lines.append("One short run each: it says nothing of which recipe is better.")
    return "\n".join(lines)


def _told(found: Mapping[str, Result]) -> str:
    """Accuracies, those of the first run's baselines last."""
    baselines = next(iter(found.values())).baselines
    figures = {name: result.metrics["accuracy"] for name, result in found.items()}
    figures |= {
        told: baselines[name]["accuracy"] for name, told in (("untrained", "untrained"), ("pixels", "raw pixels"))
    }
    return ", ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in figures.items())
