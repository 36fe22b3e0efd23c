"""Classes and depth of a training set, counted before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...data.class_names import numbered
from ...data.decode import Unreadable
from ...data.dense_dataset import DenseSet, LabelEncoding
from ...data.loader import prefetch
from ...data.read_map import Map
from ...data.resize import resize_known
from ...runs.hardware import num_cores

ENOUGH = 1000  # samples, for what need not be exact
MAX_CLASSES = 4096


def class_counts(train: DenseSet) -> tuple[tuple[str, ...], Int[Tensor, " K"]]:
    """The names of the classes, and the pixels of each: of all samples where only they tell how many there are.

    Raises ValueError where there are fewer than two, and where the ignore index lies among them.
    """
    labels = train.labels
    counts = torch.zeros(len(labels.names), dtype=torch.int64)
    for stored in _maps(train if not labels.names else train.limited(ENOUGH), "semseg"):
        ids = stored.values[stored.valid] if stored.valid is not None else stored.values.flatten()
        if len(ids) and int(ids.max()) >= MAX_CLASSES:
            raise ValueError(f"{train.address} holds class ids of {MAX_CLASSES} and more: these are no classes")
        own = torch.bincount(ids.flatten().long(), minlength=len(counts))
        counts = torch.nn.functional.pad(counts, (0, len(own) - len(counts))) + own
    if (counts > 0).sum() < 2:
        raise ValueError(
            f"the labels of {train.address} hold {int((counts > 0).sum())} class; at least two are needed: look at the"
            f" ignore index ({labels.void}), and whether the right folder was taken for labels"
        )
    names = labels.names or numbered(len(counts), labels.first)
    LabelEncoding(names, labels.first, labels.void)  # raises where void lies among them
    return names, counts


def depth_mean(train: DenseSet) -> tuple[float, float, Float[Tensor, "1 H W"]]:
    """Mean and deviation of valid depth in metres, and the mean of every pixel, at the size of the first map.

    A pixel that is never valid has the mean of all. Raises ValueError where no depth is valid.
    """
    total = square = count = 0.0
    summed: Tensor | None = None
    for stored in _maps(train.limited(ENOUGH), "depth"):
        values = stored.values.double()
        valid = values > 0
        total += values.sum().item()
        square += values.square().sum().item()
        count += valid.sum().item()
        size = (values.shape[-2], values.shape[-1]) if summed is None else (summed.shape[-2], summed.shape[-1])
        both = resize_known(torch.cat([values, valid]).float(), size)
        summed = both if summed is None else summed + both
    if summed is None or not count:
        below = "" if train.max_depth is None else f" up to {train.max_depth:g} m"
        raise ValueError(
            f"no pixel of {train.address} has a depth{below}: 0, and what is not finite, is none; look at the files and"
            " at --depth-scale, the metres of a stored unit"
        )
    mean = total / count
    std = max(square / count - mean**2, 0.0) ** 0.5 or 1.0
    return mean, std, torch.where(summed[1:] > 0, summed[:1] / summed[1:].clamp_min(1), mean)


def _maps(samples: DenseSet, kind: str) -> Iterator[Map]:
    """The maps of one kind that can be read, in order; ValueError where there is none."""
    failed: list[Unreadable] = []

    def read(index: int) -> Map | Unreadable:
        try:
            return samples.read(index, kind)
        except Unreadable as error:
            return error

    jobs = (partial(read, index) for index in range(len(samples)))
    with closing(prefetch(jobs, 4 * num_cores())) as results:
        for result in results:
            if isinstance(result, Unreadable):
                failed.append(result)
            else:
                yield result
    if len(failed) == len(samples):
        raise ValueError(f"none of the {len(samples)} {kind} maps of {samples.address} can be read; {failed[0]}")
