"""`unveil pack`: images as tar shards of the size that training needs, which are read faster than files."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from ..data.given_types import Data
from ..recipes.options import accept_python_values, as_text, as_tuple
from .over_processes import over_processes


@over_processes(Path)
@accept_python_values
def pack(
    data: Data,
    *,
    out: str | PathLike[str],
    short_side: int | None = 256,
    quality: int = 90,
    lossless: bool = False,
    shard_size: str = "256MB",
    shuffle: int | None = None,
    modalities: str | Sequence[str] = (),
    image_column: str | None = None,
    label_column: str | None = None,
    max_broken: float = 0.05,
    workers: int | None = None,
) -> Path:
    """Write images as tar shards of the WebDataset layout, which `--data OUT` reads; returns the folder.

    An interrupted pack is continued by the same command. Train and val (or test) are packed into folders of their own.

    data: a folder of images, Parquet files, shards, or scenes; with modalities, a folder that holds one for each
    out: the folder to write
    short_side: pixels of the short side that larger images are resized to; none keeps all sizes
    quality: of the JPEG files, 1 to 100; images that need no resizing and are JPEG already are kept as they are
    lossless: store PNG, and numbers as they are, instead of JPEG
    shard_size: bytes of a shard at most, such as 256MB or 1GB
    shuffle: a seed, to write the samples in random order; by default in the order of the data
    modalities: rgb, depth, semseg, or .toml files that declare others; by default those that have a folder
    image_column: the column of a Parquet file, or the member of shards, that holds the images, where there are several
    label_column: the column of a Parquet file, or the member of shards, that holds the classes
    max_broken: the share of images that may be unreadable; they are left out and listed in broken.json
    workers: threads that read, resize and write; by default one per core

    >>> import unveil
    >>> shards = unveil.pack("images", out="shards")
    shards: 40 samples in 1 shard of ...
    >>> len(unveil.data.open(shards))
    40
    """
    from ..data.aligned_folders import aligned_modalities, open_samples  # so that --help does not wait for torch
    from ..data.columns import with_columns
    from ..data.listing import split_addresses
    from ..data.modality_config import declare
    from ..data.pack import PackOptions, write_pack, write_splits
    from ..data.pack_members import Encoding
    from ..data.sources import open_source
    from ..runs.console import duration, log, quoted, user_path
    from ..runs.folder import check_apart

    data, out, modalities = as_text(data), as_text(out), as_tuple(modalities)
    if short_side is not None and short_side < 1:
        raise ValueError(f"--short-side {short_side} is no number of pixels; give 1 or more, or none")
    if not 1 <= quality <= 100:
        raise ValueError(f"--quality {quality} is not between 1 and 100")
    if not 0 <= max_broken <= 1:
        raise ValueError(f"--max-broken {max_broken} is no share between 0 and 1")
    options = PackOptions(Encoding(short_side, quality, lossless), _bytes(shard_size), shuffle)
    data, folder = with_columns(data, image_column, label_column), user_path(out)
    check_apart(folder, data)
    splits = split_addresses(data)
    parts = splits if len(splits) > 1 else {"": data}
    for split, address in parts.items():
        declared = declare(modalities) or aligned_modalities(address)
        source = open_samples(address, declared) if declared else open_source(address)
        begun = time.monotonic()
        report = write_pack(source, folder / split, options, max_broken, workers)
        seconds = time.monotonic() - begun
        for name, reason in list(report.broken.items())[:10]:
            log(f"left out, unreadable: {quoted(name)}: {quoted(reason)}")
        speed = f", {report.written / seconds:,.0f} a second" if report.written else ", as before"
        broken = f", {len(report.broken):,} unreadable ones left out (broken.json)" if report.broken else ""
        print(
            f"{folder / split}: {report.samples:,} samples in {report.shards:,} shard{'s' * (report.shards != 1)} of"
            f" {report.nbytes / 1e6:,.1f} MB together{broken}; {duration(seconds)}{speed}",
            flush=True,
        )
    if len(splits) > 1:
        write_splits(folder, splits)
    return folder


def _bytes(text: str) -> int:
    """A number of bytes as users write it: 256MB, 1GB, 64 MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    count = (
        0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))
    )
    if count < 1:
        raise ValueError(f"--shard-size {text} is no number of bytes, such as 256MB or 1GB")
    return count
