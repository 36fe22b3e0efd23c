"""`unveil demo`: the whole way on images made here. Render scenes, pretrain twice, evaluate, report."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .checkpoint import write_json
from .data.scenes import CLASSES, SceneSource, render
from .data.scenes.raycast import label_of
from .evaluation import evaluate
from .machine import num_cores
from .pretraining import pretrain
from .progress import duration, say
from .protocols import Result
from .reporting import write_report
from .reporting.pictures import png
from .runs import check_writable, read_facts

RECIPES = ("mae", "crossmae")
SCENE_SIZE = 64  # pixels of a rendered scene
# So few tokens that a tiny ViT learns something within two minutes
VIEW: dict[str, Any] = {"image_size": (48,), "patch": 8}
FEWEST = 20  # scenes: two of every class
SURE = 3.0  # standard errors that a difference must exceed before it is called one


def demo(out: str = "runs/demo", *, minutes: float = 1.5, scenes: int = 3000, seed: int = 0) -> Path:
    """Pretrain MAE and CrossMAE on rendered scenes, measure both on scenes of another seed; returns the report's path.

    A demo that was stopped goes on where it was; one that is finished begins anew and keeps only its scenes.

    out: the folder of the demo: the scenes, a run folder per recipe, the report
    minutes: how long to train each recipe
    scenes: how many scenes to learn from; a third as many are held out
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
    learned, held_out = folder / "scenes.parquet", folder / "held-out-scenes.parquet"
    render_scenes(SceneSource(scenes, SCENE_SIZE, seed), learned)
    render_scenes(SceneSource(max(FEWEST, scenes // 3), SCENE_SIZE, seed + 1), held_out)

    found: dict[str, Result] = {}
    runs = [folder / name for name in RECIPES]
    for name, run in zip(RECIPES, runs, strict=True):
        if read_facts(run).get("status") != "finished":
            say(f"\npretraining {name}")
            begun = bool(read_facts(run))
            pretrain(name, data=str(learned), out=str(run), minutes=minutes, seed=seed, overwrite=not begun, **VIEW)
        say(f"\nevaluating {name}")
        results = evaluate(str(run), data=str(learned), test_data=str(held_out), protocol=("knn", "linear"), seed=seed)
        found[name] = next(result for result in results if result.protocol == "knn")
    report = write_report(runs, folder / "report.html")
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
        for run in RECIPES:
            shutil.rmtree(folder / run, ignore_errors=True)
        for old in ["report.html"] if is_same else ["report.html", "scenes.parquet", "held-out-scenes.parquet"]:
            (folder / old).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, settings)


def render_scenes(source: SceneSource, path: Path) -> None:
    """Write scenes as a Parquet file in the Hugging Face image layout, rendered by all cores; one that is there stays.

    A scene takes about 12 ms of Python, which threads cannot share: so processes, once, and every run reads the file.
    """
    if path.exists():
        say(f"{path} is there already")
        return
    pictures = []
    is_terminal = sys.stderr.isatty()
    say(f"rendering {len(source):,} scenes with {num_cores()} cores ...")
    pool = ProcessPoolExecutor(num_cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        draw = partial(_draw, source.seed, source.size)
        for done, picture in enumerate(pool.map(draw, range(len(source)), chunksize=16), start=1):
            pictures.append(picture)
            if is_terminal and (done % 16 == 0 or done == len(source)):
                print(f"\r{done:,} of {len(source):,} scenes", end="", file=sys.stderr, flush=True)
    finally:  # also after Ctrl-C, which the workers leave to this process
        pool.shutdown(cancel_futures=True)
        if is_terminal:
            print(file=sys.stderr)
    write_parquet(path, pictures, [label_of(source.seed, i) for i in range(len(source))], CLASSES)


def _draw(seed: int, size: int, index: int) -> bytes:
    return png(render((seed, index), size).rgb.transpose(1, 2, 0))


def write_parquet(path: Path, pictures: Sequence[bytes], labels: Sequence[int], classes: Sequence[str]) -> None:
    """Encoded images and their labels as a file that the `datasets` library reads too; it is whole or not there."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    image = pa.StructArray.from_arrays(
        [pa.array(pictures, pa.binary()), pa.nulls(len(pictures), pa.string())], names=["bytes", "path"]
    )
    table = pa.table({"image": image, "label": pa.array(labels, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    unfinished = path.with_suffix(".part")
    try:
        pq.write_table(table, unfinished, row_group_size=1000)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def conclusion(found: Mapping[str, Result]) -> str:
    """What the k-NN accuracies carry, and no more: each run beside the untrained encoder, and beside raw pixels."""
    one = next(iter(found.values()))
    images = int(str(one.settings["test_images"]))
    figures = [f"{name} {_percent(result)}" for name, result in found.items()]
    beside = [f"raw pixels {_percent(one, 'pixels')}, chance {1 / len(CLASSES):.0%}"]
    lines = [f"k-NN accuracy on {images:,} held-out scenes: {', '.join(figures + beside)}."]
    for name, result in found.items():
        learned = result.metrics["accuracy"]
        untrained = result.baselines["untrained"]["accuracy"]
        error = math.sqrt((learned * (1 - learned) + untrained * (1 - untrained)) / images)
        if learned > untrained:
            by = (learned - untrained) / error
            told = f"above the untrained encoder{'' if by > SURE else ', but no more than chance may explain'}"
            told += f" ({_percent(result, 'untrained')}; the difference is {by:.1f} standard errors)"
        else:
            told = f"no better than the untrained encoder ({_percent(result, 'untrained')})"
        lines.append(f"{name} is {told}.")
    lines.append("One short run each: it says nothing of which recipe is better.")
    return "\n".join(lines)


def _percent(result: Result, whose: str | None = None) -> str:
    metrics = result.baselines[whose] if whose else result.metrics
    return f"{100 * metrics['accuracy']:.1f} %"
