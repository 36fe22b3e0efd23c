"""What became of each class: how many of its test samples were right, and what the others were taken for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_PAIRS = 500  # of a class and another that it is taken for: all of 22 classes, the most frequent of more


def of_scores(scores: Float[Tensor, "M K"], labels: Int[Tensor, " M"]) -> dict[str, Any]:
    """The results by class of scores, the highest of which is the class predicted; as `hits`, a tie is a miss."""
    best, own = scores.max(1), scores.gather(1, labels[:, None])
    is_right = (scores < own).sum(1) == scores.shape[1] - 1
    is_other = ~is_right & (best.indices != labels)
    num_classes = scores.shape[1]
    pairs = torch.where(is_right, labels, best.indices) + labels * num_classes
    counted = torch.bincount(pairs[is_right | is_other], minlength=num_classes**2)
    return of_counts(counted.view(num_classes, num_classes).cpu(), labels.bincount(minlength=num_classes).tolist())


def of_counts(
    counts: Int[Tensor, "K K"], totals: Sequence[int] | None = None, names: Sequence[str] = (), unit: str = ""
) -> dict[str, Any]:
    """The results by class of a confusion matrix, rows the truth: a part of `Score.shown`, as JSON.

    totals: the samples of each class, by default the sums of its row
    names: of the classes; those of labelled images are added by the runner
    unit: what is counted, such as pixels; images where nothing is said

    `confused` holds the most frequent pairs of a class and another that it is taken for, with their number.
    """
    others = counts.clone().fill_diagonal_(0)
    number = min(MOST_PAIRS, int((others > 0).sum()))
    found = others.flatten().topk(number)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    size = len(counts)
    content = {
        "count": counts.sum(1).tolist() if totals is None else list(totals),
        "right": counts.diagonal().tolist(),
        "confused": [[cell // size, cell % size, value] for cell, value in pairs],
    }
    if names:
        content["names"] = list(names)
    return {"classes": content | ({"unit": unit} if unit else {})}


def of_draws(shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results by class of several measurements on the same test samples, added up; {} where one has none."""
    if not shown or not all("classes" in one for one in shown):
        return {}
    each = [one["classes"] for one in shown]
    pairs: Counter[tuple[int, int]] = Counter()
    for one in each:
        pairs.update({(true, taken): number for true, taken, number in one["confused"]})
    content: dict[str, Any] = {
        key: [sum(values) for values in zip(*(one[key] for one in each), strict=True)] for key in ("count", "right")
    }
    content["confused"] = [[true, taken, number] for (true, taken), number in pairs.most_common(MOST_PAIRS)]
    return {"classes": content | ({"unit": f"images over {len(each)} draws"} if len(each) > 1 else {})}
