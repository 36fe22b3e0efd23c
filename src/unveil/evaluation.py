"""`unveil evaluate`: protocols on a run's frozen features, beside what raw pixels and no training give."""

from __future__ import annotations

import sys
from pathlib import Path

from .data.sources import open_source
from .loading import load, untrained
from .pretrained import Pool
from .protocols import FeatureEncoder, RawPixels, Result, run_protocols, table, write_results


def evaluate(
    run: str,
    *,
    data: str,
    test_data: str | None = None,
    protocol: tuple[str, ...] = ("knn", "linear"),
    pool: Pool = "mean",
    baselines: bool = True,
    limit: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    seed: int = 0,
) -> list[Result]:
    """Measure a run on labelled images; the results are printed and kept in the run's `eval/`.

    data: labelled images: a folder of class folders, a Parquet file with labels, or scenes
    test_data: the images to test on; by default a fifth of every class of data
    protocol: knn, linear (as MAE probes), linear-lbfgs
    pool: cls, mean, or both
    baselines: measure raw pixels and the untrained encoder too
    limit: use at most so many images of each source
    batch_size: images at once
    device: cpu, cuda, mps; auto takes the best
    seed: of splits and probes
    """
    encoder = load(run, pool=pool, device=device)
    train = open_source(data, encoder.channels)
    test = open_source(test_data, encoder.channels) if test_data else None
    others: dict[str, FeatureEncoder] = {}
    if baselines:
        others = {
            "pixels": RawPixels(encoder.encoder.modalities[0], encoder.image_size, encoder.device),
            "untrained": untrained(run, pool=pool, device=device),
        }
    is_terminal = sys.stderr.isatty()

    def tell(whose: str, done: int, total: int) -> None:
        if is_terminal:
            print(f"\rfeatures of {whose}: {done:,} of {total:,} images", end="", file=sys.stderr, flush=True)

    results = run_protocols(
        encoder, protocol, train, test, pool, others, seed=seed, batch_size=batch_size, limit=limit, progress=tell
    )
    if is_terminal:
        print(file=sys.stderr)
    write_results(Path(run).expanduser(), results)
    print(table(results))
    return results
