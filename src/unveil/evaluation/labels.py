"""What labels must be like before anything can be learned from them, and how to hold some of them out."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.sources import Source


def check_labels(source: Source) -> list[int]:
    """The labels of a source to learn from; ValueError unless it has two classes, and two images of each."""
    labels = _labels(source)
    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"all {len(labels)} images of {source.address} are of one class ({_name(source, labels[0])!r});"
            " a classifier needs at least two"
        )
    scarce = sorted(label for label, count in counts.items() if count < 2)
    if scarce:
        raise ValueError(
            f"{len(scarce)} of the {len(counts)} classes of {source.address} have a single image, e.g."
            f" {_name(source, scarce[0])!r}; every class needs at least 2: add images or leave those classes out"
        )
    return labels


def shared_numbers(train: Source, test: Source) -> dict[int, int]:
    """The number in `train` of each of `test`'s classes, matched by name where both have names.

    Raises ValueError when `test` is not labelled or has a class that `train` has not.
    """
    learned, asked = set(_labels(train)), set(_labels(test))
    number_of = {_name(train, label): label for label in learned}
    unknown = sorted(_name(test, label) for label in asked if _name(test, label) not in number_of)
    if unknown:
        raise ValueError(
            f"{test.address} has {len(unknown)} classes that {train.address} has not, e.g. {unknown[0]!r}"
            f" (there: {', '.join(sorted(number_of)[:5])}, ...); both need the same classes under the same names"
        )
    return {label: number_of[_name(test, label)] for label in asked}


def stratified_split(
    labels: Int[Tensor, " N"], held_share: float, seed: int
) -> tuple[Int[Tensor, " K"], Int[Tensor, " H"]]:
    """Rows to keep and rows to hold out, both ascending: that share of every class, at least one but never all."""
    rng = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0].cpu()
        count = min(max(1, int(held_share * len(rows))), len(rows) - 1)
        held[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _labels(source: Source) -> list[int]:
    if source.labels is None:
        raise ValueError(
            f"{source.address} has no labels, and this protocol needs them: put each class into a folder of its own"
            " name, or give a Parquet file with a label column"
        )
    without = sum(label < 0 for label in source.labels)
    if without:
        raise ValueError(f"{without} of the {len(source)} images of {source.address} have no label; leave them out")
    return list(source.labels)


def _name(source: Source, label: int) -> str:
    return source.classes[label] if source.classes else str(label)
