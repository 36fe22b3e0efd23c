"""`unveil demo`: render scenes, pretrain on them, show what was learned; with `--all` the ladder of recipes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..recipes.options import accept_python_values, as_text
from ..reporting.page import write_report
from ..runs.atomic import write_json, write_text
from ..runs.console import duration, log, table, user_path
from ..runs.hardware import num_cores
from .claims import Claim, Finding, conclusion, find, first_screen, is_above, summary
from .scenes import SEMANTIC_CLASSES, SceneSource, render, render_scenes
from .study.jobs import Job
from .study.schedule import Schedule, read_marker, write_jobs

SCENE_SIZE = 32  # pixels of a rendered scene
SCENES = 4000  # to train on, where the user gives no number
HELD_OUT = 3 / 8  # as many again to measure on
CLASSES = "semseg.toml"  # names the classes of pixels
MIN_SCENES, MIN_HELD_OUT = 40, 20  # four and two of every class
FEW = 500  # held-out scenes where more take longer than they tell
MINUTES = 5.0  # of the whole demo
LADDER_MINUTES = 1.0  # of training for each recipe of the ladder
LOG_SECONDS = 10.0  # between two lines on the progress of a run

# As seconds of a quiet core (AVX-512 and bf16): what a demo of five minutes needs beside training
RENDER_SECONDS = 0.009  # for a scene
MEASURING_SECONDS = {"rgb": 85.0, "senses": 55.0}  # the start of a run, its measurements, and the report
CHECKED = {"rgb": 16.0, "senses": 16.0}  # epochs with --check: the same training on every machine

HIDDEN = 0.6  # of the patches, where pixels are predicted
NARROW: dict[str, Any] = {"size": "nano", "image_size": [SCENE_SIZE]}
RGB: dict[str, Any] = {
    **NARROW,
    "patch": 4,
    "visible": 1 - HIDDEN,
    "predicted": HIDDEN / 2,
    "norm_pix": False,  # so that nothing of the truth is put back into what is shown
    "batch_size": 64,
    "lr": 6e-3,  # 1.5e-3 at this batch
    "lr_scale": "none",
}
SENSES: dict[str, Any] = {
    **NARROW,
    "patch": 8,
    "visible": 1 / 3,
    "concentration": [0.5],  # more samples with one whole modality, which is what is asked of it
    "guide_every": 4,  # the guide's pass over all patches takes as long as the rest of an update
    "extra_norm_pix": False,
    "decoder_depth": 1,
    "batch_size": 64,
    "lr": 6e-3,
}

FILLED = ("training mean", "nearest visible pixel", "inverse distance", "untrained")
FROZEN = ("pixels", "untrained")
BY_PLACE, MEAN = ("training mean by place", "untrained"), ("training mean", "untrained")
FILLS, TELLS, WORTH = PARTS = "Fills in what it did not see", "Tells one sense from another", "Is worth something"
PROBE = Claim(WORTH, "linear probe of the class", "linear-lbfgs", "accuracy", FROZEN)
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "rgb": (
        Claim(
            FILLS, "hidden patches filled in", "reconstruct", f"psnr_{HIDDEN:g}_pixels", FILLED, "{:.2f} dB", "dB", 1.0
        ),
        PROBE,
        Claim(WORTH, "class of each patch, linear", "patches", "accuracy", FROZEN),
    ),
    "senses": (
        Claim(TELLS, "classes of pixels from colour", "reconstruct", "pixel_accuracy_semseg_from_rgb", BY_PLACE),
        Claim(TELLS, "depth from colour", "reconstruct", "delta1_depth_from_rgb", MEAN),
        Claim(TELLS, "depth from classes and colour", "reconstruct", "delta1_depth_from_rgb_and_semseg", MEAN),
    ),
}
LADDER = ("linear-lbfgs", "knn", "knn-whitened")
CROSS: dict[str, Any] = {"decoder": "cross", "blend": "linear", "predicted": 0.25}  # more steps in a minute


@accept_python_values
def demo(
    out: str | PathLike[str] = "runs/demo",
    *,
    minutes: float | None = None,
    scenes: int | None = None,
    seed: int = 0,
    all: bool = False,
    check: bool = False,
) -> Path:
    """Pretrain on rendered scenes and show what was learned beside what needs no learning; returns the report's path.

    CrossMAE of colours alone, then guided MultiMAE of colours, depth and classes; both are measured on scenes of
    another seed. A demo that was stopped is continued; one that is finished starts again and keeps its scenes.

    out: the folder of the demo: the scenes, a run folder per recipe, the report
    minutes: of the whole demo, by default 5; with --all of the training of each recipe, by default 1
    scenes: how many scenes to train on, by default 4000, fewer where rendering is slow; 3 to every 8 are held out
    seed: of scenes, initialisation, order, views and masks
    all: the ladder of MAE, CrossMAE, CMT-MAE and guided MultiMAE instead, each with one core where there is no GPU
    check: train for the same number of images on every machine, and fail (exit status 1) unless the linear probe is
        above raw pixels and the untrained encoder

    >>> import unveil
    >>> page = unveil.demo("runs/demo", minutes=0.02, scenes=64)  # far too little: leave both out
                                   this run  beside ...
    """
    began = time.monotonic()
    if scenes is not None and scenes < MIN_SCENES:
        raise ValueError(f"--scenes {scenes} are too few to train and to evaluate on; give {MIN_SCENES} or more")
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes {minutes:g} leaves no time to train; give more than 0")
    if all and check:
        raise ValueError("--check measures the demo, not the ladder of --all; give one of the two")
    folder = user_path(as_text(out))
    begin(folder, {"minutes": minutes, "scenes": scenes, "seed": seed, "all": all, "check": check})
    try:
        report, findings = (_ladder if all else _demo)(folder, minutes, scenes, seed, check, began)
    except KeyboardInterrupt:
        log("the same command continues the demo")
        raise
    print(f"report: {report}")
    if check and not any(finding.claim == PROBE and is_above(finding) for finding in findings):
        raise ValueError("the linear probe is not above raw pixels and the untrained encoder: nothing was learned")
    return report


Outcome = tuple[Path, list[Finding]]


def _demo(folder: Path, minutes: float | None, scenes: int | None, seed: int, check: bool, began: float) -> Outcome:
    total = 60 * (minutes or MINUTES)
    slow = 1.0 if check else slowness()
    plan = _kept(folder, "scenes", lambda: scenes or max(200, round(SCENES * min(1.0, total / 60 / MINUTES) / slow)))
    if slow > 2:
        log(f"this machine is slow or busy: a scene takes {slow:.1f} times as long as planned, so all is made smaller")
    count, slots = int(plan), min(2, num_cores())
    train, test = _render(folder, count, seed)
    write_text(train / CLASSES, f"[semseg]\nclasses = {json.dumps(list(SEMANTIC_CLASSES))}\n")
    less, jobs = min(1.0, total / 60 / MINUTES, count * slow / SCENES), []
    left = (total - (time.monotonic() - began)) / (2 / slots)  # both at once, each with a core, is faster than in turn
    for name, measuring in MEASURING_SECONDS.items():
        length = _kept(folder, name, lambda measuring=measuring: max(0.05 * total, left - less * measuring) / 60)
        training = {"epochs": CHECKED[name]} if check else {"minutes": length}
        jobs.append(_job(name, training, train, test, seed))
    runs = {name: folder / "runs" / name for name in CLAIMS}
    _run(folder, jobs, slots, lambda job: summary(runs[job.name], CLAIMS[job.name]))
    by_run = {name: find(run, CLAIMS[name]) for name, run in runs.items()}
    findings = [finding for of_run in by_run.values() for finding in of_run]
    findings.sort(key=lambda finding: PARTS.index(finding.claim.part))
    under = f"CrossMAE of colours, and MultiMAE of colours, depth and classes, on {count:,} rendered scenes"
    screen = first_screen("unveil demo", under, by_run, PARTS)
    report = write_report([*runs.values()], folder / "report.html", summary=screen)
    spent = time.monotonic() - began
    log(f"all of it took {duration(spent)}{'' if check or spent < 1.2 * total else ': the machine was busy'}")
    print(conclusion(findings))
    return report, findings


def slowness() -> float:
    """How many times as long a scene takes here as on the machine that the demo was planned on; at least 1."""
    began = time.perf_counter()
    for index in range(16):
        render((0, index), SCENE_SIZE)
    planned = 16 * RENDER_SECONDS if num_cores() > 1 else 8 * RENDER_SECONDS  # where there are two cores
    return max(1.0, (time.perf_counter() - began) / planned)


def _kept(folder: Path, name: str, choose: Any) -> float:
    """A number that depends on the clock: chosen once, and the same when the demo is continued."""
    file = folder / "plan.json"
    plan = json.loads(file.read_text()) if file.exists() else {}
    if name not in plan:
        plan[name] = choose()
        write_json(file, plan)
    return float(plan[name])


def _render(folder: Path, train: int, seed: int) -> tuple[Path, Path]:
    test = max(MIN_HELD_OUT, round(HELD_OUT * train))
    render_scenes(SceneSource(train, SCENE_SIZE, seed), folder / "scenes")
    render_scenes(SceneSource(test, SCENE_SIZE, seed + 1), folder / "held-out-scenes")
    return folder / "scenes", folder / "held-out-scenes"


def _job(name: str, training: Mapping[str, Any], train: Path, test: Path, seed: int) -> Job:
    """The run of a part of the demo, and its measurements."""
    maps = {"data": str(train), "test_data": str(test), "seed": seed}
    images = {"data": str(train / "rgb"), "test_data": str(test / "rgb"), "seed": seed}
    classes = str(train / CLASSES)
    if name == "senses":
        recipe, own = "multimae-attention", {"data": str(train), "modalities": ["rgb", "depth", classes], **SENSES}
        across = {"hidden": [0.5], "by_place": True, "predict": ["depth", "semseg"]}
        evaluate = [{**maps, "protocol": ["reconstruct"], **across}]
    else:
        recipe, own = "crossmae", {"data": str(train / "rgb"), **RGB}
        patches = {"train_patches": 8192, "limit": FEW}
        evaluate = [
            {**images, "protocol": ["reconstruct"], "hidden": [HIDDEN]},
            {**images, "protocol": ["linear-lbfgs"], "pool": "both", "layer": [2, 4, 6]},
            {**maps, "protocol": ["patches"], "modalities": ["rgb", classes], **patches},
        ]
    return Job(name, name, "", seed, recipe, {**training, "seed": seed, **own}, evaluate, [], [])


def _run(folder: Path, jobs: list[Job], slots: int, describe: Any) -> None:
    write_jobs(folder, jobs, "auto")
    log(f"pretraining and measuring {', '.join(job.name for job in jobs)}; the logs are in {folder / 'logs'}")
    schedule = Schedule(folder, jobs, slots, LOG_SECONDS, shows_time=True)
    schedule.run(describe)
    if schedule.failed:
        name, why = next(iter(schedule.failed.items()))
        raise ValueError(f"{name} failed: {why}; the same command tries it again")


def ladder(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes of the ladder with their data and options of their own; CMT-MAE's teacher is the CrossMAE run."""
    maps, rgb = folder / "scenes", str(folder / "scenes" / "rgb")
    return {
        "mae": {"data": rgb},
        "crossmae": {"data": rgb},
        "cmtmae": {"data": rgb, "teacher": str(folder / "runs" / "crossmae"), **CROSS},
        "multimae-attention": {"data": str(maps), "modalities": ["rgb", "depth", "semseg"]},
    }


def _ladder(folder: Path, minutes: float | None, scenes: int | None, seed: int, check: bool, began: float) -> Outcome:
    count = scenes or SCENES
    train, test = _render(folder, count, seed)
    images = {"data": str(train / "rgb"), "test_data": str(test / "rgb"), "pool": "both", "seed": seed}
    training = {"minutes": minutes or LADDER_MINUTES, "seed": seed, **NARROW, "patch": 4}
    needs, measured = {"cmtmae": ["crossmae"]}, [{**images, "protocol": [*LADDER]}]
    jobs = [
        Job(name, name, "", seed, name, {**training, **own}, measured, [], needs.get(name, []))
        for name, own in ladder(folder).items()
    ]
    claims = [Claim(WORTH, protocol, protocol, "accuracy", FROZEN) for protocol in LADDER]
    of_run = {job.name: folder / "runs" / job.name for job in jobs}
    slots = max(1, torch.cuda.device_count()) if torch.cuda.is_available() else min(2, num_cores())
    _run(folder, jobs, slots, lambda job: summary(of_run[job.name], claims))
    report = write_report([*of_run.values()], folder / "report.html")
    log(f"all of it took {duration(time.monotonic() - began)}")
    findings = [(name, finding) for name, run in of_run.items() for finding in find(run, claims)]
    head = ["", "measure", "accuracy", "beside", "above the best, ± three standard errors", "learned"]
    print(table([head, *([name, *finding.row] for name, finding in findings)], "llllll"))
    print("One short run each: it says nothing of which recipe is better.")
    return report, [finding for _, finding in findings]


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder ready: an unfinished demo of these settings stays, another or a finished one keeps its scenes.

    Scenes of another number or seed go too. Raises ValueError when the folder holds something else.
    """
    before = read_marker(folder, "demo")
    if before != dict(settings) or (folder / "report.html").exists():
        same = all_equal(before, settings, ("scenes", "seed"))
        kept = json.loads((folder / "plan.json").read_text()).get("scenes") if (folder / "plan.json").exists() else None
        gone = ["runs", "jobs", "logs", "locks", *([] if same else ["scenes", "held-out-scenes"])]
        for old in gone:
            shutil.rmtree(folder / old, ignore_errors=True)
        for file in ("report.html", "plan.json"):
            (folder / file).unlink(missing_ok=True)
        if same and kept is not None:
            write_json(folder / "plan.json", {"scenes": kept})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "demo.json", settings)


def all_equal(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    """Whether two mappings agree on these names."""
    return bool(a) and [a.get(name) for name in names] == [b.get(name) for name in names]
