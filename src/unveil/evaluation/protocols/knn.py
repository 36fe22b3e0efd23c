"""Weighted k-nearest neighbours: the classes of the most similar training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..by_class import of_scores
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score, accuracies, hits

K = 20
OTHER_K = (1, 5, 10, 20, 100, 200)
TEMPERATURE = 0.07
MAX_SIMILARITIES = 1 << 24  # 64 MiB of float32 at a time


@dataclass(frozen=True)
class Knn:
    """Weighted k-NN by cosine similarity, votes weighted exp(similarity / 0.07) (Wu et al., 2018, section 3.4)."""

    needs: ClassVar[Needs] = "features"

    def run(self, encoder: FeatureEncoder, data: FeatureSplit, context: Context) -> Score:
        ks = sorted({min(k, len(data.train)) for k in OTHER_K})
        votes_by_k = knn_votes(
            data, ks, progress=lambda done: context.progress(f"neighbours of {context.subject}", done, len(data.test))
        )
        by_k = {k: accuracies(votes, data.test_labels) for k, votes in zip(ks, votes_by_k, strict=True)}
        k = min(K, len(data.train))
        return Score(
            outcomes={"accuracy": hits(votes_by_k[ks.index(k)], data.test_labels)},
            shown=of_scores(votes_by_k[ks.index(k)], data.test_labels),
            metrics=by_k[k] | {f"accuracy_k{other}": metrics["accuracy"] for other, metrics in by_k.items()},
            settings={
                "k": k,
                "temperature": TEMPERATURE,
                "similarity": "cosine",
                "weights": "exp(similarity / temperature)",
            },
            card=(
                f"Every test image takes the class that its {k} most similar training images vote for: cosine"
                f" similarity of frozen features, votes weighted exp(similarity / {TEMPERATURE}), as in Wu et al."
                " (2018) and DINO. As published; the accuracies at other k are given for comparison and chosen from"
                " nothing."
            ),
        )


def knn_votes(
    data: FeatureSplit,
    ks: list[int],
    max_similarities: int = MAX_SIMILARITIES,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Tensor]:
    """The votes `M classes` of each test sample's neighbours, for each k of an ascending list.

    At most `max_similarities` similarities (or one test sample's) exist at a time. `progress` is called with the test
    samples that are done.
    """
    train = F.normalize(data.train, dim=1)
    rows = max(1, max_similarities // len(train))
    chunks = []
    for number, test in enumerate(data.test.split(rows), 1):
        chunks.append(_votes(F.normalize(test, dim=1) @ train.T, data, ks))
        progress(min(number * rows, len(data.test)))
    return [torch.cat(votes) for votes in zip(*chunks, strict=True)]


def _votes(similarity: Tensor, data: FeatureSplit, ks: list[int]) -> list[Tensor]:
    nearest, neighbours = similarity.topk(ks[-1], dim=1)  # M k, nearest first
    weights, labels = (nearest / TEMPERATURE).exp(), data.train_labels[neighbours]
    votes = similarity.new_zeros(len(similarity), data.num_classes)
    by_k = []
    for first, last in pairwise([0, *ks]):
        votes = votes.scatter_add(1, labels[:, first:last], weights[:, first:last])
        by_k.append(votes)
    return by_k
