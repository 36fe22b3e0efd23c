"""`unveil analyze features`: the layers of two encoders compared."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ...data.aligned_folders import open_images
from ...data.columns import with_columns
from ...data.given_types import Data
from ...data.loader import Loader
from ...data.sources import Source, Subset, spread
from ...data.transforms import CenterView
from ...evaluation.analysis.conclusions import of_layers
from ...evaluation.analysis.layer_features import LayerFeatures, cka_matrix, layer_features
from ...modeling.image_encoder import ImageEncoder
from ...modeling.public_vits import PublicViT, is_public_vit
from ...recipes.options import accept_python_values, as_text
from ...recipes.run import Run
from ...runs.console import table
from ...runs.folder import check_writable
from ..load import load_plain, weights_of
from ..subject import print_conclusions, write_analysis


@accept_python_values
def analyze_features(
    run_a: str | PathLike[str] | Run,
    run_b: str | PathLike[str] | Run,
    *,
    data: Data | None = None,
    image_column: str | None = None,
    limit: int = 256,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Compare the layers of two runs, or public ViTs; printed, and written to `analysis/` of the first.

    Linear CKA of every layer of one with every layer of the other (features are means over patches); for each layer
    RankMe and the mean attention distance in pixels.

    data: images to compare on; by default those that the first run held out
    image_column: the column of a Parquet file that holds the images, where there are several
    limit: use at most so many images, evenly spread
    device: cpu, cuda, mps; auto takes the best
    trust: execute the recipe file of a run whose encoder is of classes of its own, where you have not run it before

    >>> import unveil
    >>> measured = unveil.analyze_features("runs/a", "runs/a")
    linear CKA of the layers of a (rows) and a (columns) on ... images ...
    >>> len(measured["cka"])
    6
    """
    run_a, run_b = as_text(run_a), as_text(run_b)
    data = with_columns(as_text(data), image_column)
    first = None if is_public_vit(run_a) else Run.open(run_a, trust)
    if first is None and data is None:
        raise ValueError(f"{run_a} is not a run with images of its own; give --data")
    loaded = [load_plain(run, device, trust=trust) for run in (first or run_a, run_b)]
    encoders = [encoder for encoder, _ in loaded]
    given = None if data is None else open_images(data, encoders[0].channels, first.declared if first else ())
    source = first.held_out(given) if first else given
    assert source is not None
    folder = first.path if first else Path("runs", Path(run_a).stem)
    check_writable(folder)
    a, b = (_layers(encoder, source, limit) for encoder in encoders)
    names = [Path(run).name for run in (run_a, run_b)]
    matrix = cka_matrix(a, b)
    content = {
        "runs": names,
        "weights": [weights_of(*pair) for pair in loaded],
        "data": source.address,
        "images": len(a[0].features),
        "cka": matrix,
        "layers": [
            [{"rankme": x.rankme, "distance": x.distance, "heads": x.distances} for x in layers] for layers in (a, b)
        ],
        "conclusions": of_layers(names, a, b),
    }
    write_analysis(folder, f"features-{names[1]}", content)
    print(f"linear CKA of the layers of {names[0]} (rows) and {names[1]} (columns) on {content['images']} images")
    print(table([["layer", *range(1, len(b) + 1)], *([k, *row] for k, row in enumerate(matrix, start=1))]))
    for name, layers in zip(names, (a, b), strict=True):
        rows = [[k, x.rankme, x.distance, min(x.distances), max(x.distances)] for k, x in enumerate(layers, start=1)]
        print(f"\n{name}: RankMe (effective dimensions) and mean attention distance in pixels")
        print(table([["layer", "RankMe", "distance", "nearest head", "farthest head"], *rows]))
    print_conclusions(content)
    return content


def _layers(encoder: ImageEncoder | PublicViT, source: Source, limit: int) -> list[LayerFeatures]:
    few = Subset(source, spread(len(source), limit))
    loader = Loader(few, CenterView(encoder.image_size), 64, max_broken=None, cache_bytes=0)
    images = [image for batch, _ in loader.in_order() for image in batch.on("cpu").marked("rgb")]
    if len(images) < 2:
        raise ValueError(f"{source.address} gives {len(images)} images that can be read; 2 or more are needed")
    if images[0].shape[0] != encoder.channels:
        raise ValueError(f"the encoder reads {encoder.channels} channels, {source.address} has {images[0].shape[0]}")
    return layer_features(encoder, images)
