"""`unveil inspect`: what images hold, before training on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..recipes.options import accept_python_values

if TYPE_CHECKING:  # so that --help does not wait for torch
    from ..data.inspection import AlignedInspection, Inspection


@accept_python_values
def inspect(
    data: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    modalities: tuple[str, ...] = (),
    limit: int | None = None,
) -> Inspection | AlignedInspection:
    """Check images before training on them: `print(unveil.inspect("~/photos"))`.

    Of a folder with one folder for each modality the alignment is checked, and samples that lack a map are listed.

    data: a folder of images, a Parquet file, hf:OWNER/NAME, FOLDER.lance, or scenes; with modalities, a folder or a
        table that holds one for each
    image_column: the column of a table that holds the images, where there are several
    label_column: the column of a table that holds the classes, whatever its name
    modalities: rgb, depth, semseg, or .toml files that declare others; by default those that have a folder
    limit: decode at most so many images for the statistics of pixels
    """
    from ..data.aligned_folders import aligned_modalities, open_samples
    from ..data.columns import with_columns
    from ..data.inspection import inspect_samples, inspect_source
    from ..data.modality_config import declare
    from ..data.sources import open_source

    data = with_columns(data, image_column, label_column)
    declared = declare(modalities) or aligned_modalities(data)
    if declared:
        return inspect_samples(open_samples(data, declared), limit)
    return inspect_source(open_source(data), limit)
