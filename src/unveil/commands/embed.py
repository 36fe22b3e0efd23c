"""`unveil embed`: features of any images, with their names, in one file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import numpy as np

from ..data.aligned_folders import open_images
from ..data.columns import GIVEN, with_columns
from ..data.given_types import Data
from ..data.identity import digest, identities
from ..data.sources import Source, Subset, spread
from ..data.splits import names_digest
from ..data.tiling import MIN_VALID, with_tiles
from ..evaluation.choice import Auto, Reading, settle, take
from ..evaluation.features import extract
from ..evaluation.normalizers import FittedOn
from ..modeling.normalizer import Normalize
from ..modeling.types import Combine, Pool
from ..recipes.options import accept_python_values, as_text, as_tuple
from ..recipes.run import Run
from ..runs.console import quoted, user_path
from ..runs.executors import Executor, Work, executor
from ..runs.folder import check_writable
from .embed_parts import Content, Parts, in_turn, shape_of, write_features
from .load import folder_of, load_plain, weights_of
from .over_processes import over_processes

_LOOKED_AT = 64  # images whose content says whether parts are of these images


@over_processes(Path)
@accept_python_values
def embed(
    run: str | PathLike[str] | Run,
    *,
    data: Data,
    image_column: str | None = None,
    label_column: str | None = None,
    tile: int | None = None,
    tile_overlap: int = 0,
    tile_valid: float = MIN_VALID,
    out: str | PathLike[str] = "features.npz",
    pool: Pool | Auto = "mean",
    layer: int | Auto | Sequence[int | Auto] = (),
    combine: Combine = "concat",
    normalize: Normalize | Auto = "none",
    limit: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    trust: bool = False,
    on: str | None = None,
    jobs: int | None = None,
    part_size: int = 65_536,
    dry_run: bool = False,
) -> Path:
    """Write the features of images to an .npz file: `features` N x D, `names`, and `labels` where there are any.

    `weights` is JSON that says which were used: a checksum, and of a run step and epoch.

    run: a run folder, or an `unveil.Run`; a public ViT's weights, or its name on the hub
    data: images in a folder, a Parquet file, shards, or scenes; of folders of rgb, depth, ... the first that it reads
    image_column: the column of a Parquet file that holds the images, where there are several
    label_column: the column of a Parquet file that holds the classes, whatever its name
    tile: cut images into tiles of so many pixels a side instead of resizing them
    tile_overlap: pixels that neighbouring tiles have in common
    tile_valid: share of a tile that must be inside the image and have data; other tiles are passed over
    out: the file to write
    pool: the class token (cls), the mean of the patches, both, mean-std with their standard deviation, cls-mean-std, or
        auto, chosen on the run's training images without labels
    layer: the blocks that features are read from, counted from 1, or from the end (-1), or auto; by default the last
    combine: what becomes of several blocks: side by side (concat), or their mean
    normalize: none, standardize, whiten, l2 or auto, by statistics of the run's training images, which its folder
        keeps; of a public ViT, by those that are kept in runs/<its name>, or else of these images
    limit: embed at most so many images, evenly spread
    batch_size: images in one forward pass
    device: cpu, cuda, mps; auto takes the best
    trust: execute the recipe file of a run whose encoder is of classes of its own, where you have not run it before
    on: compute in parts that are kept, so that the same command goes on where it was stopped: local, slurm or ray, or
        with options, slurm:partition=gpu,time=2:00:00,gpus_per_node=1 or ray:address=HOST:6379,gpus=1
    jobs: with on: the number of processes; by default one, of slurm one for each part, of ray as many as have room
    part_size: with on: images of a part, rounded up to whole batches
    dry_run: with on: print what would be started, and compute nothing

    >>> import numpy as np
    >>> import unveil
    >>> file = unveil.embed("runs/a", data="images", out="features.npz")
    features.npz: 40 features of 128 numbers
    >>> np.load(file)["features"].shape
    (40, 128)
    """
    run, data, out, layer = as_text(run), as_text(data), as_text(out), as_tuple(layer)
    given = {name: value for name, value in locals().items() if name not in ("run", "on", "jobs", "dry_run")}
    where = _executor(on, data, jobs, part_size, dry_run)
    path = user_path(out)
    if path.suffix != ".npz":
        raise ValueError(f"--out {out} is not an .npz file; give a name that ends in .npz")
    check_writable(path.parent)
    encoder, stored = load_plain(run, device, trust=trust)
    weights = weights_of(encoder, stored)
    data = with_tiles(with_columns(data, image_column, label_column), tile, tile_overlap, tile_valid)
    source = open_images(data, encoder.channels, stored.declared if stored else ())
    images = source if limit is None or limit >= len(source) else Subset(source, spread(len(source), limit))
    part_size = -(-part_size // batch_size) * batch_size  # so that batches are those of a whole
    if where is not None:
        work = Work(embed, "embed", run, given | {"on": "local"})
        where.start(work, -(-len(images) // part_size), jobs, dry_run)
        if dry_run or not where.is_awaited:
            return path
    fitted = FittedOn(stored.train_images if stored and not stored.imported else lambda: source, micro_batch=batch_size)
    folder = folder_of(run, stored)

    def read() -> Reading:
        reading = settle(encoder, fitted, folder, pool, layer, combine, normalize, print)
        take(encoder, reading, fitted, folder)
        return reading

    def content_of(some: Source) -> Content:
        features = extract(encoder, some, encoder.pool, batch_size)
        content: Content = {"features": features.values.numpy(), "names": np.array(features.names)}
        content["weights"] = np.array(json.dumps(weights))
        if features.labels is not None:
            content["labels"] = features.labels.numpy()
        for name in features.unreadable[:10]:
            print(f"left out, unreadable: {quoted(name)}", file=sys.stderr)
        return content

    if where is None:
        read()
        write_features(path, content_of(images))
    else:
        reading = in_turn(read, path)
        facts = [weights, asdict(reading), batch_size, part_size, len(images), names_digest(images)]
        name = digest(json.dumps([*facts, _some_identities(images)]).encode())
        parts = Parts.of(path, name, len(images), part_size)
        parts.finish(lambda rows: content_of(Subset(images, rows)))
    rows, width = shape_of(path)
    print(f"{path}: {rows:,} features of {width} numbers")
    return path


def _executor(on: str | None, data: str, jobs: int | None, part_size: int, dry_run: bool) -> Executor | None:
    """Where features are computed in parts; None in this process, as a whole."""
    for flag, number in {"jobs": jobs, "part_size": part_size}.items():
        if number is not None and number < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {number}: a whole number, 1 or more, is needed")
    if on is None:
        if jobs is not None or dry_run:
            raise ValueError(f"--{'jobs' if jobs else 'dry-run'} is for --on local, slurm or ray; give that too")
        return None
    if data.partition(":")[0] == GIVEN:
        raise ValueError("images that are in the memory of this process cannot be read by others: leave `on` out")
    return executor(on)


def _some_identities(images: Source) -> list[int]:
    """What tells images that were replaced under their names, by some of them."""
    return [int(number) for number in identities(Subset(images, spread(len(images), _LOOKED_AT)))]
