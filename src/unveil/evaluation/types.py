"""What a protocol is given and what it gives back.

A protocol is a function in a file of the same name. The type of its first argument says what it works on: a `Split`
of features that are computed once, or a `Task`, the images and the encoder themselves. Its keyword arguments after the
seed are its dials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Features to learn from and features to be judged on, both labelled 0 .. num_classes - 1."""

    train: Float[Tensor, "N D"]
    train_labels: Int[Tensor, " N"]
    test: Float[Tensor, "M D"]
    test_labels: Int[Tensor, " M"]
    num_classes: int

    def learning_from(self, rows: Int[Tensor, " K"]) -> Split:
        """The same with some of the training samples only."""
        rows = rows.to(self.train.device)
        return Split(self.train[rows], self.train_labels[rows], self.test, self.test_labels, self.num_classes)


@dataclass(frozen=True)
class Score:
    """What a protocol found (shares in [0, 1]), with which settings, and what it did in plain words.

    `trains_encoder` says that the encoder learned too: then that of an untrained one is training from scratch.
    `beside` are the metrics of answers that need no encoder, such as the most frequent class, and `details` what a
    metric is a mean of, such as each class's IoU.
    """

    metrics: dict[str, float]
    settings: dict[str, object]
    card: str
    trains_encoder: bool = False
    beside: Mapping[str, dict[str, float]] = field(default_factory=dict)
    details: Mapping[str, dict[str, float]] = field(default_factory=dict)


Protocol = Callable[..., Score | None]


def accuracies(scores: Float[Tensor, "M K"], labels: Int[Tensor, " M"]) -> dict[str, float]:
    """The share of samples whose class scores highest, and, beyond 5 classes, among the highest 5. A tie is a miss."""
    own = scores.gather(1, labels[:, None])
    rivals = scores.shape[1] - 1 - (scores < own).sum(1)  # so NaN, which is below nothing, is a miss too
    found = {"accuracy": (rivals < 1).double().mean().item()}
    if scores.shape[1] > 5:
        found["top5"] = (rivals < 5).double().mean().item()
    return found
