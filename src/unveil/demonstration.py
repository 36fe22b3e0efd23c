"""`unveil demo`: the whole way on images made here. Render scenes, pretrain four ways, evaluate, report."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .checkpoint import write_json
from .data.scenes import CLASSES, SceneSource, render
from .evaluation import evaluate
from .machine import num_cores
from .pretraining import pretrain
from .progress import duration, say
from .protocols import Result
from .reporting import write_report
from .runs import check_writable, read_facts

SCENE_SIZE = 64  # pixels of a rendered scene
# So small an encoder and so few tokens that a minute on two cores shows it every scene ten times and more
SHAPE: dict[str, Any] = {"size": "nano", "image_size": (48,), "patch": 8}
CROSS: dict[str, Any] = {"decoder": "cross", "blend": "linear", "predicted": 0.25}  # so that a minute holds more steps
FEWEST = 20  # scenes: two of every class
SURE = 3.0  # standard errors that a difference must exceed before it is called one


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """What is pretrained in turn, with its data and its own dials; each may build on the runs before it."""
    maps = folder / "scenes"
    colour = str(maps / "rgb")
    return {
        "mae": {"data": colour},
        "crossmae": {"data": colour},
        "cmtmae": {"data": colour, "teacher": str(folder / "crossmae"), **CROSS},
        "multimae-attention": {"data": str(maps), "modalities": ("rgb", "depth", "semseg")},
    }


def demo(out: str = "runs/demo", *, minutes: float = 0.75, scenes: int = 3000, seed: int = 0) -> Path:
    """Pretrain four recipes on rendered scenes, measure all on scenes of another seed; returns the report's path.

    MAE and CrossMAE see the pictures alone; CMT-MAE has the CrossMAE of this demo as its teacher; guided MultiMAE sees
    depth and classes too. A demo that was stopped goes on where it was; one that is finished begins anew and keeps only
    its scenes.

    out: the folder of the demo: the scenes, a run folder per recipe, the report
    minutes: how long to train each recipe
    scenes: how many scenes to learn from; half as many are held out
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
        say("the demo goes on from here: the same command again")
        raise


def _demo(folder: Path, minutes: float, scenes: int, seed: int, began: float) -> Path:
    learned, held_out = folder / "scenes", folder / "held-out-scenes"
    render_scenes(SceneSource(scenes, SCENE_SIZE, seed), learned)
    render_scenes(SceneSource(max(FEWEST, scenes // 2), SCENE_SIZE, seed + 1), held_out)

    found: dict[str, Result] = {}
    for name, own in recipes(folder).items():
        run = folder / name
        if read_facts(run).get("status") != "finished":
            say(f"\npretraining {name}")
            is_begun = bool(read_facts(run))
            pretrain(name, out=str(run), minutes=minutes, seed=seed, overwrite=not is_begun, **own, **SHAPE)
        say(f"\nevaluating {name}")
        results = evaluate(
            str(run),
            data=str(learned / "rgb"),
            test_data=str(held_out / "rgb"),
            protocol=("knn", "linear"),
            baselines=not found,  # an untrained ViT knows as much under any recipe
            seed=seed,
        )
        found[name] = next(result for result in results if result.protocol == "knn")
    report = write_report([folder / name for name in found], folder / "report.html")
    say(f"\nall of it took {duration(time.monotonic() - began)}")
    print(conclusion(found))
    print(f"report: {report}")
    return report


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
        for old in [*recipes(folder), *([] if is_same else ["scenes", "held-out-scenes"])]:
            shutil.rmtree(folder / old, ignore_errors=True)
        (folder / "report.html").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, settings)


def render_scenes(source: SceneSource, folder: Path) -> None:
    """Write scenes as aligned folders `rgb`, `depth` and `semseg` of class folders; those that are there stay.

    Depth is in millimetres. A scene takes about 12 ms of Python, which threads cannot share: so processes, once, and
    every run reads the files. All scenes are there or none.
    """
    if folder.exists():
        say(f"{folder} is there already")
        return
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for modality in ("rgb", "depth", "semseg"):
        for name in CLASSES:
            (unfinished / modality / name).mkdir(parents=True)
    is_terminal = sys.stderr.isatty()
    say(f"rendering {len(source):,} scenes with {num_cores()} cores ...")
    pool = ProcessPoolExecutor(num_cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        draw = partial(_draw, unfinished, source.seed, source.size)
        for done, _ in enumerate(pool.map(draw, range(len(source)), chunksize=16), start=1):
            if is_terminal and (done % 16 == 0 or done == len(source)):
                print(f"\r{done:,} of {len(source):,} scenes", end="", file=sys.stderr, flush=True)
        unfinished.replace(folder)
    finally:  # also after Ctrl-C, which the workers leave to this process
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_terminal:
            print(file=sys.stderr)


def _draw(folder: Path, seed: int, size: int, index: int) -> None:
    scene = render((seed, index), size)
    file = f"{CLASSES[scene.label]}/{index:06d}.png"
    Image.fromarray(scene.rgb.transpose(1, 2, 0)).save(folder / "rgb" / file)
    Image.fromarray((1000 * scene.depth[0]).round().astype(np.uint16)).save(folder / "depth" / file)
    Image.fromarray(scene.semseg).save(folder / "semseg" / file)


def conclusion(found: Mapping[str, Result]) -> str:
    """What the k-NN accuracies carry, and no more: each run beside the untrained encoder, and beside raw pixels."""
    one = next(iter(found.values()))
    images = int(str(one.settings["test_images"]))
    untrained = one.baselines["untrained"]["accuracy"]
    figures = {name: result.metrics["accuracy"] for name, result in found.items()}
    figures |= {"untrained": untrained, "raw pixels": one.baselines["pixels"]["accuracy"], "chance": 1 / len(CLASSES)}
    told = ", ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in figures.items())
    lines = [f"k-NN accuracy on {images:,} held-out scenes: {told}."]
    for name, result in found.items():
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
