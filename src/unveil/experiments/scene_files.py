"""Rendered scenes as files, so that any command reads them and no run renders them twice."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..runs.console import Progress, log
from ..runs.hardware import num_cores
from .scenes import CLASSES, SceneSource, render


def render_scenes(source: SceneSource, folder: Path) -> None:
    """Write scenes as aligned folders `rgb`, `depth` and `semseg` of class folders; those that are there stay.

    Depth is in millimetres. A scene takes about 12 ms of Python, which threads cannot share: so processes, once, and
    every run reads the files. All scenes are there or none.
    """
    if folder.exists():
        log(f"{folder} is there already")
        return
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for modality in ("rgb", "depth", "semseg"):
        for name in CLASSES:
            (unfinished / modality / name).mkdir(parents=True)
    progress = Progress()
    log(f"rendering {len(source):,} scenes with {num_cores()} cores ...")
    pool = ProcessPoolExecutor(num_cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        draw = partial(_draw, unfinished, source.seed, source.size)
        for done, _ in enumerate(pool.map(draw, range(len(source)), chunksize=16), start=1):
            progress.update(f"{done:,} of {len(source):,} scenes", done, len(source))
        unfinished.replace(folder)
    finally:  # also after Ctrl-C, which the workers leave to this process
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        progress.close()


def _draw(folder: Path, seed: int, size: int, index: int) -> None:
    scene = render((seed, index), size)
    file = f"{CLASSES[scene.label]}/{index:06d}.png"
    Image.fromarray(scene.rgb.transpose(1, 2, 0)).save(folder / "rgb" / file)
    Image.fromarray((1000 * scene.depth[0]).round().astype(np.uint16)).save(folder / "depth" / file)
    Image.fromarray(scene.semseg).save(folder / "semseg" / file)
