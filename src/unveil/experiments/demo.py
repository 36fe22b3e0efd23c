"""`unveil demo`: render scenes, pretrain four recipes on them, evaluate, report."""

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
from ..recipes.options import accept_python_values
from ..reporting.page import write_report
from ..runs.atomic import write_json
from ..runs.console import duration, log, user_path
from ..runs.hardware import num_cores
from .scenes import CLASSES, SceneSource, render_scenes
from .study.jobs import Job
from .study.schedule import Schedule, read_marker, write_jobs

SCENE_SIZE = 64  # pixels of a rendered scene
# An encoder so small, and so few tokens, that a minute on one core is several epochs
SHAPE: dict[str, Any] = {"size": "nano", "image_size": [48], "patch": 8}
CROSS: dict[str, Any] = {"decoder": "cross", "blend": "linear", "predicted": 0.25}  # more steps in a minute
PROTOCOLS = {"knn": "k-NN", "knn-whitened": "whitened k-NN", "linear": "linear"}
MIN_SCENES = 20  # two of every class
STANDARD_ERRORS = 3.0  # that a difference must exceed to be significant
LOG_SECONDS = 10.0  # between two lines on the progress of the recipes


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes with their data and options of their own; CMT-MAE's teacher is the CrossMAE run."""
    maps = folder / "scenes"
    rgb = str(maps / "rgb")
    return {
        "mae": {"data": rgb},
        "crossmae": {"data": rgb},
        "cmtmae": {"data": rgb, "teacher": str(folder / "runs" / "crossmae"), **CROSS},
        "multimae-attention": {"data": str(maps), "modalities": ["rgb", "depth", "semseg"]},
    }


@accept_python_values
def demo(out: str = "runs/demo", *, minutes: float = 1.0, scenes: int = 3000, seed: int = 0) -> Path:
    """Pretrain four recipes on rendered scenes, evaluate all on scenes of another seed; returns the report's path.

    MAE and CrossMAE read RGB images alone; CMT-MAE has the CrossMAE of this demo as its teacher; guided MultiMAE reads
    depth and classes too. On a processor two run side by side, since models as small as these leave half of it idle. A
    demo that was stopped is continued; one that is finished starts again and keeps only its scenes.

    out: the folder of the demo: the scenes, a run folder per recipe, the report
    minutes: how long to train each recipe
    scenes: how many scenes to train on; as many are held out
    seed: of scenes, initialisation, order, views and masks
    """
    if scenes < MIN_SCENES:
        raise ValueError(f"--scenes {scenes} are too few to train and to evaluate on; give {MIN_SCENES} or more")
    if minutes <= 0:
        raise ValueError(f"--minutes {minutes:g} leaves no time to train; give more than 0")
    began = time.monotonic()
    folder = user_path(out)
    begin(folder, {"minutes": minutes, "scenes": scenes, "seed": seed})
    try:
        return _demo(folder, minutes, scenes, seed, began)
    except KeyboardInterrupt:
        log("the same command continues the demo")
        raise


def _demo(folder: Path, minutes: float, scenes: int, seed: int, began: float) -> Path:
    render_scenes(SceneSource(scenes, SCENE_SIZE, seed), folder / "scenes")
    render_scenes(SceneSource(scenes, SCENE_SIZE, seed + 1), folder / "held-out-scenes")
    jobs = _jobs(folder, minutes, seed)
    write_jobs(folder, jobs, "auto")
    runs = {job.name: folder / "runs" / job.name for job in jobs}
    schedule = Schedule(folder, jobs, None if torch.cuda.is_available() else min(2, num_cores()), LOG_SECONDS)
    log(f"pretraining and evaluating {', '.join(runs)}; their logs are in {folder / 'logs'}")
    schedule.run(lambda job: _accuracies({label: _result(runs[job.name], p).metrics for p, label in PROTOCOLS.items()}))
    if schedule.failed:
        name, why = next(iter(schedule.failed.items()))
        raise ValueError(f"{name} failed: {why}; the same command tries it again")
    report = write_report([*runs.values()], folder / "report.html")
    log(f"all of it took {duration(time.monotonic() - began)}")
    plain, whitened = ({name: _result(run, p) for name, run in runs.items()} for p in ("knn", "knn-whitened"))
    print(conclusion(plain, whitened))
    print(f"report: {report}")
    return report


def _jobs(folder: Path, minutes: float, seed: int) -> list[Job]:
    """Each recipe's run and its measurements; CMT-MAE waits for its teacher."""
    measurement = {
        "data": str(folder / "scenes" / "rgb"),
        "test_data": str(folder / "held-out-scenes" / "rgb"),
        "protocol": [*PROTOCOLS],
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
            evaluate=[{**measurement, "baselines": name == "mae"}],  # an untrained ViT is the same under any recipe
            analyze=[],
            needs=["crossmae"] if name == "cmtmae" else [],
        )
        for name, own in recipes(folder).items()
    ]


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder ready: an unfinished demo of these settings stays, a finished one keeps its scenes alone.

    Raises ValueError when the folder holds something else.
    """
    is_same = read_marker(folder, "demo") == dict(settings)
    if not is_same or (folder / "report.html").exists():
        for old in ["runs", "jobs", "logs", "locks", *([] if is_same else ["scenes", "held-out-scenes"])]:
            shutil.rmtree(folder / old, ignore_errors=True)
        (folder / "report.html").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "demo.json", settings)


def _result(run: Path, protocol: str) -> Result:
    return Result(**json.loads((run / "eval" / f"{protocol}.json").read_text()))


def _accuracies(results: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{name} {100 * metrics['accuracy']:.1f} %" for name, metrics in results.items())


def conclusion(plain: Mapping[str, Result], whitened: Mapping[str, Result]) -> str:
    """What the k-NN accuracies support: each run is compared with the untrained encoder and with raw pixels.

    Whitened features decide, since a minute of training shows in them first.
    """

    def accuracies(results: Mapping[str, Result]) -> str:
        baselines = next(iter(results.values())).baselines
        references = {"untrained": baselines["untrained"], "raw pixels": baselines["pixels"]}
        return _accuracies({name: result.metrics for name, result in results.items()} | references)

    first = next(iter(whitened.values()))
    images = int(str(first.settings["test_images"]))
    lines = [
        f"k-NN accuracy on {images:,} held-out scenes: {accuracies(plain)}.",
        f"With whitened features: {accuracies(whitened)}; chance {100 / len(CLASSES):.1f} %.",
    ]
    untrained = first.baselines["untrained"]["accuracy"]
    for name, result in whitened.items():
        trained = result.metrics["accuracy"]
        if trained <= untrained:
            lines.append(f"{name} is no better than the untrained encoder.")
            continue
        errors = (trained - untrained) / math.sqrt((trained * (1 - trained) + untrained * (1 - untrained)) / images)
        doubt = "" if errors > STANDARD_ERRORS else ", but no more than chance may explain"
        lines.append(f"{name} is above the untrained encoder{doubt} (the difference is {errors:.1f} standard errors).")
    lines.append("One short run each: it says nothing of which recipe is better.")
    return "\n".join(lines)
