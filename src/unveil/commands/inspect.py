"""`unveil inspect`: what images hold, before training on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.given_types import Data
from ..data.tiling import MIN_VALID, with_tiles
from ..recipes.options import accept_python_values, as_text, as_tuple
from ..runs.run_config import Check

if TYPE_CHECKING:  # so that --help does not wait for torch
    from ..data.inspection import AlignedInspection, Inspection


@accept_python_values
def inspect(
    data: Data,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    tile: int | None = None,
    tile_overlap: int = 0,
    tile_valid: float = MIN_VALID,
    modalities: str | Sequence[str] = (),
    limit: int | None = None,
    check: Check = "auto",
) -> Inspection | AlignedInspection:
    """Check images before training on them: `print(unveil.inspect("~/photos"))`.

    Of a folder with one folder for each modality the alignment is checked, and samples that lack a map are listed.

    data: a folder of images, a Parquet file, tar shards, hf:OWNER/NAME, FOLDER.lance, or scenes; with modalities, a
        folder or a table that holds one for each
    image_column: the column of a table that holds the images, where there are several
    label_column: the column of a table that holds the classes, whatever its name
    tile: cut images into tiles of so many pixels a side instead of resizing them
    tile_overlap: pixels that neighbouring tiles have in common
    tile_valid: share of a tile that must be inside the image and have data; other tiles are passed over
    modalities: rgb, depth, semseg, or .toml files that declare others; by default those that have a folder
    limit: decode at most so many images for the statistics of pixels
    check: whose headers are read: all, a sample of 100,000, or none but those of images that are decoded; auto takes
        all up to 100,000 files and a sample of more; of aligned maps, whose class ids are read where their number is
        not declared: auto takes all

    >>> import unveil
    >>> found = unveil.inspect("images")
    >>> found.count, found.median, found.classes
    (40, (32, 32), {'even': 20, 'odd': 20})
    """
    from ..data.aligned_folders import aligned_modalities, open_samples
    from ..data.columns import with_columns
    from ..data.inspection import inspect_samples, inspect_source
    from ..data.modality_config import declare
    from ..data.sources import SampleSource, open_source

    data = with_tiles(with_columns(as_text(data), image_column, label_column), tile, tile_overlap, tile_valid)
    declared = declare(as_tuple(modalities)) or aligned_modalities(data)
    if declared:
        return inspect_samples(open_samples(data, declared), limit, check)
    source = open_source(data)
    look = inspect_samples if isinstance(source, SampleSource) else inspect_source
    return look(source, limit, check)
