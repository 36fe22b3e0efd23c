"""Weighted k-nearest neighbours: the simplest question to ask of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..types import Score, Split, accuracies

K = 20
OTHER_K = (1, 5, 10, 20, 100, 200)
TEMPERATURE = 0.07
MAX_SIMILARITIES = 1 << 24  # 64 MiB of float32 at a time


def knn(split: Split, seed: int = 0) -> Score:
    """Weighted k-NN by cosine similarity, votes weighted exp(similarity / 0.07) (Wu et al., 2018, section 3.4)."""
    used = sorted({min(k, len(split.train)) for k in OTHER_K})
    by_k = {k: accuracies(votes, split.test_labels) for k, votes in zip(used, knn_votes(split, used), strict=True)}
    k = min(K, len(split.train))
    return Score(
        metrics=by_k[k] | {f"accuracy_k{other}": found["accuracy"] for other, found in by_k.items()},
        settings={
            "k": k,
            "temperature": TEMPERATURE,
            "similarity": "cosine",
            "weights": "exp(similarity / temperature)",
        },
        card=(
            f"Every test image takes the class that its {k} most similar training images vote for: cosine similarity"
            f" of frozen features, votes weighted exp(similarity / {TEMPERATURE}), as in Wu et al. (2018) and DINO."
            f" As published; the accuracies at other k are given for comparison and chosen from nothing."
        ),
    )


def knn_votes(split: Split, ks: list[int], max_similarities: int = MAX_SIMILARITIES) -> list[Tensor]:
    """The votes `M classes` of each test sample's neighbours, for each k of an ascending list.

    At most `max_similarities` similarities (or one test sample's) exist at a time.
    """
    train = F.normalize(split.train, dim=1)
    rows = max(1, max_similarities // len(train))
    chunks = [_votes(F.normalize(test, dim=1) @ train.T, split, ks) for test in split.test.split(rows)]
    return [torch.cat(votes) for votes in zip(*chunks, strict=True)]


def _votes(similarity: Tensor, split: Split, ks: list[int]) -> list[Tensor]:
    nearest, neighbours = similarity.topk(ks[-1], dim=1)  # M k, nearest first
    weights, labels = (nearest / TEMPERATURE).exp(), split.train_labels[neighbours]
    votes = similarity.new_zeros(len(similarity), split.num_classes)
    found = []
    for first, last in zip([0, *ks], ks, strict=False):
        votes = votes.scatter_add(1, labels[:, first:last], weights[:, first:last])
        found.append(votes)
    return found
