"""`unveil embed`: features of any images, with their names, in one file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..data.aligned_folders import open_images
from ..data.columns import with_columns
from ..data.tiling import MIN_VALID, with_tiles
from ..evaluation.choice import Auto, settle, take
from ..evaluation.features import extract
from ..evaluation.normalizers import FittedOn
from ..modeling.normalizer import Normalize
from ..modeling.types import Combine, Pool
from ..recipes.options import accept_python_values
from ..runs.atomic import make_folder, replacing
from ..runs.console import quoted, user_path
from ..runs.folder import check_writable
from .load import folder_of, load_plain, weights_of
from .over_processes import over_processes


@over_processes(Path)
@accept_python_values
def embed(
    run: str,
    *,
    data: str,
    image_column: str | None = None,
    label_column: str | None = None,
    tile: int | None = None,
    tile_overlap: int = 0,
    tile_valid: float = MIN_VALID,
    out: str = "features.npz",
    pool: Pool | Auto = "mean",
    layer: tuple[int | Auto, ...] = (),
    combine: Combine = "concat",
    normalize: Normalize | Auto = "none",
    limit: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    trust: bool = False,
) -> Path:
    """Write the features of images to an .npz file: `features` N x D, `names`, and `labels` where there are any.

    `weights` is JSON that says which were used: a checksum, and of a run step and epoch.

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
    """
    path = user_path(out)
    if path.suffix != ".npz":
        raise ValueError(f"--out {out} is not an .npz file; give a name that ends in .npz")
    check_writable(path.parent)
    encoder, stored = load_plain(run, device, trust=trust)
    weights = weights_of(encoder, stored)
    data = with_tiles(with_columns(data, image_column, label_column), tile, tile_overlap, tile_valid)
    source = open_images(data, encoder.channels, stored.declared if stored else ())
    images = FittedOn(stored.train_images if stored and not stored.imported else lambda: source, micro_batch=batch_size)
    folder = folder_of(run, stored)
    take(encoder, settle(encoder, images, folder, pool, layer, combine, normalize, print), images, folder)
    features = extract(encoder, source, encoder.pool, batch_size, limit=limit)
    content: dict[str, Any] = {"features": features.values.numpy(), "names": np.array(features.names)}
    content["weights"] = np.array(json.dumps(weights))
    if features.labels is not None:
        content["labels"] = features.labels.numpy()
    make_folder(path.parent)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)
    for name in features.unreadable[:10]:
        print(f"left out, unreadable: {quoted(name)}", file=sys.stderr)
    print(f"{path}: {features.values.shape[0]:,} features of {features.values.shape[1]} numbers")
    return path
