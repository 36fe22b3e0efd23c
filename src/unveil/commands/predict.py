"""`unveil predict`: classes, masks, depth or boxes of any images, by a head that `unveil evaluate --keep` has kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.aligned_folders import aligned_modalities, open_images, open_samples
from ..data.columns import with_columns
from ..data.decode import Unreadable
from ..data.given_types import Data
from ..data.inspection import inspect_samples
from ..data.loader import Loader
from ..data.modality_config import BUILT_IN, Declared
from ..data.prefetch import prefetch
from ..data.sources import Source, Subset, images_of, presence, sampler, spread
from ..data.transforms import CenterView, Sample
from ..evaluation.predictors import BoxPredictor, ClassPredictor, DensePredictor
from ..modeling.public_vits import is_public_vit
from ..recipes.options import accept_python_values, as_text
from ..recipes.run import Run
from ..runs.atomic import make_folder, write_json
from ..runs.console import Progress, plural, quoted, user_path
from ..runs.folder import check_writable
from ..runs.hardware import autocast
from ..runs.run_config import Precision
from .box_files import CocoResults, draw_boxes
from .load import load_predictor
from .prediction_files import (
    FileNames,
    Format,
    class_table,
    depth_unit,
    draw_classes,
    draw_depth,
    draw_mask,
    summary,
    write_depth,
    write_mask,
)

_SUMMARY = "predictions.json"
_SHOWN = 3  # classes in a drawn picture
_FAR = 8  # standard deviations of the training depth above its mean, which files hold at least
_INSPECTED = 64


@accept_python_values
def predict(
    run: str | PathLike[str] | Run,
    *,
    data: Data,
    head: str | None = None,
    out: str | PathLike[str] = "predictions",
    format: Format = "csv",
    top: int | None = None,
    draw: bool = False,
    image_column: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: Precision = "auto",
    overwrite: bool = False,
    trust: bool = False,
) -> Path:
    """Write what a kept head predicts for every image into a folder; returns the folder.

    Of classes `predictions.csv` or `.jsonl` has a row for each image, with probabilities. Of a class for every pixel
    `masks/` has a PNG of ids for each, as the training labels store them, of depth `depth/` one of 16 bits; both at the
    image's own size. Of boxes `boxes.json` has all of them in COCO's layout. `predictions.json` says which head of
    which weights it was, names the classes or the unit, and the images that could not be read.

    data: images in a folder, a Parquet file, shards, or scenes; of a head that reads several maps, folders of rgb,
        depth, ...
    head: the protocol whose head to use, such as finetune, linear or segment; by default the only one that is kept
    out: the folder to write
    format: of the table of classes: csv, or jsonl, one JSON object a line
    top: write the most probable classes alone, so many; by default the probabilities of all
    draw: write pictures too, with the prediction beside or over each image, to `drawn/`
    image_column: the column of a Parquet file that holds the images, where there are several
    limit: predict at most so many images, evenly spread
    batch_size: images in one forward pass
    device: cpu, cuda, mps; auto takes the best
    precision: float32 or bf16; auto takes bf16 where the device has it in hardware
    overwrite: replace the predictions that the folder holds
    trust: execute the recipe file of a run whose encoder is of classes of its own, where you have not run it before

    Raises ValueError where no such head is kept, and for a folder that holds files.

    >>> import unveil
    >>> (result,) = unveil.evaluate("runs/a", data="images", protocol="linear-lbfgs", keep=True)
    protocol ...
    >>> folder = unveil.predict("runs/a", data="images", top=1)
    predictions: classes of 40 images
    >>> (folder / "predictions.csv").read_text().splitlines()[0]
    'name,label 1,probability 1'
    """
    for name, value in (("top", top), ("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1; got {value}")
    run, out, data = as_text(run), as_text(out), as_text(data)
    stored = None if is_public_vit(run) else Run.open(run, trust)
    model = load_predictor(stored or run, head, device)
    if model.task != "classes" and (top is not None or format != "csv"):
        raise ValueError(
            f"--top and --format are of tables of classes, and this head predicts {model.task}; leave them out"
        )
    folder = user_path(out)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} holds files; give another --out, or --overwrite to replace earlier predictions")
    source = _opened(with_columns(data, image_column), model.inputs, stored.declared if stored else ())
    if limit is not None and limit < len(source):
        source = Subset(source, spread(len(source), limit))
    check_writable(folder)
    make_folder(folder)
    (folder / _SUMMARY).unlink(missing_ok=True)  # it is there when all is
    line = Progress(quiet=5.0)
    try:
        if isinstance(model, ClassPredictor):
            if top is not None and top > len(model.classes):
                raise ValueError(f"--top {top} is more than the {len(model.classes)} classes of this head")
            content = _write_classes(model, source, folder, format, top, draw, batch_size, precision, line)
        elif isinstance(model, BoxPredictor):
            content = _write_boxes(model, source, folder, draw, precision, line)
        else:
            assert isinstance(model, DensePredictor)
            content = _write_maps(model, source, folder, draw, precision, line)
    finally:
        line.close()
    if not content["images"]:
        raise ValueError(f"none of the {len(source)} images of {source.address} can be read")
    write_json(folder / _SUMMARY, content)
    for name in content["unreadable"][:10]:
        print(f"left out, unreadable: {quoted(name)}", file=sys.stderr)
    print(f"{folder}: {model.task} of {content['images']:,} {plural('image', content['images'])}")
    return folder


def _opened(address: str, inputs: Sequence[Any], declared: Sequence[Declared]) -> Source:
    """The images, or the samples with all maps that a head reads."""
    known = BUILT_IN | {d.name: d for d in declared}
    own = tuple(known[m.name] for m in inputs if m.name in known)
    if len(inputs) == 1 and not (own and inputs[0].name != "rgb" and aligned_modalities(address)):
        return open_images(address, inputs[0].channels, own)
    samples = open_samples(address, own)
    samples = samples.settled(
        inspect_samples(Subset(samples, spread(len(samples), _INSPECTED))).settle(samples.declared)
    )
    rows = np.flatnonzero(presence(samples).all(axis=1)).tolist()
    if not rows:
        raise ValueError(
            f"no sample of {address} has all of {', '.join(m.name for m in inputs)}, which this head reads"
        )
    return Subset(samples, rows)


def _write_classes(
    model: ClassPredictor,
    source: Source,
    folder: Path,
    form: Format,
    top: int | None,
    draw: bool,
    batch_size: int,
    precision: Precision,
    line: Progress,
) -> dict[str, Any]:
    loader = Loader(source, CenterView(model.image_size), batch_size, max_broken=None, cache_bytes=0)
    files = FileNames([source.name(index) for index in range(len(source))]) if draw else None
    image_of, done = images_of(source, "rgb"), 0
    table = class_table(folder / f"predictions.{form}", form, model.classes, top)
    with table as add, closing(loader.in_order()) as batches:
        for batch, rows in batches:
            with torch.inference_mode(), autocast(model.device, precision):
                scores = model(batch.on(model.device).marked("rgb"))
            for row, own in zip(rows.tolist(), scores.float().softmax(1).cpu().numpy(), strict=True):
                add((source.name(row), own))
                if files is not None:
                    best = np.argsort(-own)[:_SHOWN]
                    shown = [model.classes[k] for k in best], own[best].tolist()
                    draw_classes(folder / "drawn" / files(source.name(row), ".jpg"), image_of(row).maps["rgb"], *shown)
            done += len(rows)
            line.update(f"predicting: {done:,} of {len(source):,} images", done, len(source))
    return summary(model.facts, list(loader.unreadable), done, classes=list(model.classes), task=model.task)


def _write_maps(
    model: DensePredictor, source: Source, folder: Path, draw: bool, precision: Precision, line: Progress
) -> dict[str, Any]:
    files = FileNames([source.name(index) for index in range(len(source))])
    first = model.inputs[0].name
    unreadable: list[str] = []
    done = cut = 0
    more: dict[str, Any] = {"task": model.task, "classes": list(model.classes)}
    unit = 0.0
    if model.metres is not None:
        mean, std = model.metres
        unit = depth_unit(mean + _FAR * std)
        more = {"task": model.task, "unit_in_metres": unit}
    else:
        more["ids"] = {name: k + model.stored[0] for k, name in enumerate(model.classes)}
    for index, sample in _samples(source, first):
        name = source.name(index)
        if sample is None:
            unreadable.append(name)
            continue
        (prediction,) = model.predict([sample], autocast(model.device, precision))
        cut += _write_map(model, prediction, folder, partial(files, name), unit, sample.maps[first] if draw else None)
        done += 1
        line.update(f"predicting: {done:,} of {len(source):,} images", done, len(source))
    return summary(model.facts, unreadable, done, **more, **({"pixels_out_of_range": cut} if unit else {}))


def _write_boxes(
    model: BoxPredictor, source: Source, folder: Path, draw: bool, precision: Precision, line: Progress
) -> dict[str, Any]:
    files = FileNames([source.name(index) for index in range(len(source))])
    boxes, unreadable, done = CocoResults(model.classes), list[str](), 0
    for index, sample in _samples(source, "rgb"):
        name = source.name(index)
        if sample is None:
            unreadable.append(name)
            continue
        (found,) = model.predict([sample], autocast(model.device, precision))
        boxes.add(name, sample.size, found)
        if draw:
            draw_boxes(folder / "drawn" / files(name, ".png"), sample.maps["rgb"], found, model.classes)
        done += 1
        line.update(f"predicting: {done:,} of {len(source):,} images", done, len(source))
    write_json(folder / "boxes.json", boxes.content)
    return summary(model.facts, unreadable, done, classes=list(model.classes), task=model.task)


def _write_map(
    model: DensePredictor,
    prediction: Float[Tensor, "K H W"],
    folder: Path,
    file: Callable[[str], Path],
    unit: float,
    image: Tensor | None,
) -> int:
    """Write one prediction, and draw it over its image; returns how many pixels the file could not hold."""
    if model.metres is not None:
        metres = prediction[0].float().numpy()
        if image is not None:
            draw_depth(folder / "drawn" / file(".jpg"), image, metres)
        return write_depth(folder / "depth" / file(".png"), metres, unit)
    ids = prediction.argmax(0).numpy()
    write_mask(folder / "masks" / file(".png"), ids, *model.stored, len(model.classes))
    if image is not None:
        draw_mask(folder / "drawn" / file(".jpg"), image, ids, model.classes)
    return 0


def _samples(source: Source, first: str) -> Iterator[tuple[int, Sample | None]]:
    """Each sample whole, read ahead by threads; None for one that cannot be read."""
    read = sampler(source, first)

    def tried(index: int) -> Sample | None:
        try:
            return read(index)
        except Unreadable:
            return None

    with closing(prefetch((partial(tried, index) for index in range(len(source))), 4)) as samples:
        yield from enumerate(samples)
