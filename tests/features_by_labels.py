"""How well features chosen without labels do with them: `python tests/features_by_labels.py RUN DATA TEST_DATA`.

For every candidate of --pool auto --layer auto --normalize auto: its RankMe and retrieval of the other view, and its
k-NN and L-BFGS accuracies; then the rank correlation of the signals with the accuracies, and the accuracies of the
default, of the choice and of the best candidate. `--untrained` takes the weights of the run's initialisation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from unveil.data.sources import open_source
from unveil.evaluation.choice import Reading, narrowed, settle
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.normalizers import FittedOn
from unveil.evaluation.protocols.knn import Knn
from unveil.evaluation.protocols.linear_lbfgs import LinearLBFGS
from unveil.evaluation.types import Context
from unveil.modeling.normalizer import Normalizer
from unveil.recipes.run import Run
from unveil.runs.console import table

LIMIT = 3000


def correlation(first: list[float], second: list[float]) -> float:
    """Spearman's, with no ties to speak of."""
    ranks = torch.stack([torch.tensor(x, dtype=torch.float64).argsort().argsort().double() for x in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def main(run: str, data: str, test_data: str, *flags: str) -> None:
    torch.set_num_threads(1)
    opened = Run.open(run)
    split = ImageSplit.of(open_source(data), open_source(test_data), LIMIT)
    images = FittedOn(opened.train_images)
    encoder = opened.encoder(trained="--untrained" not in flags)
    with tempfile.TemporaryDirectory() as folder:
        chosen = settle(encoder, images, Path(folder), "auto", ("auto",), "concat", "auto", print)
        candidates = json.loads((Path(folder) / "features" / "chosen.json").read_text())["candidates"]
    blocks = sorted({block for candidate in candidates for block in candidate["layers"]})
    encoder.pool = widest = "cls-mean-std"
    encoder.read(blocks)
    features = split.features(encoder, Context(pool=widest))
    fitted_on = images.extract(encoder, images.images[0]).values
    rows = []
    for candidate in candidates:
        reading = Reading(candidate["pool"], tuple(candidate["layers"]), candidate["combine"], candidate["normalize"])
        normalizer = Normalizer.fit(narrowed(fitted_on, widest, blocks, reading), reading.normalize)
        train, test = (normalizer(narrowed(x, widest, blocks, reading)) for x in (features.train, features.test))
        own = replace(features, train=train, test=test)
        scores = [protocol.run(encoder, own, Context()) for protocol in (Knn(), LinearLBFGS())]
        rows.append(
            (reading, candidate["rankme"], candidate["retrieval"], *(100 * s.metrics["accuracy"] for s in scores))
        )
        print(*rows[-1], flush=True)
    columns = list(zip(*rows, strict=True))
    for name, signal in zip(("RankMe", "retrieval"), columns[1:3], strict=True):
        print(f"{name}: Spearman's correlation with k-NN {correlation(signal, columns[3]):.2f}, linear"
              f" {correlation(signal, columns[4]):.2f}")  # fmt: skip
    own = next(row for row in rows if row[0] == chosen)
    best = [max(column) for column in columns[3:]]
    print(table([["", "k-NN", "linear"], ["default", *rows[0][3:]], ["chosen", *own[3:]], ["best of each", *best]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
