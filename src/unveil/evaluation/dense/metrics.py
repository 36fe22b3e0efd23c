"""Metrics of predictions at every pixel: intersections over unions, and errors of depth."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST_DEPTH = 1e-3  # metres, below which no prediction is taken at its word: a ratio needs a number above 0

DELTA = 1.25  # the ratio to the truth below which a depth counts as right


class Confusion:
    """How many pixels of each class were predicted as each: rows are the ground truth, columns the prediction."""

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, predicted: Int[Tensor, "*_"], truth: Int[Tensor, "*_"], valid: Bool[Tensor, "*_"]) -> None:
        size = len(self.counts)
        pairs = truth[valid].long() * size + predicted[valid].long()
        self.counts += torch.bincount(pairs, minlength=size * size).view(size, size).cpu()

    @property
    def iou(self) -> Float[Tensor, " K"]:
        """Of each class, intersection over union; NaN for one that is neither true nor predicted anywhere."""
        hits = self.counts.diagonal().double()
        return hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    def metrics(self) -> dict[str, float]:
        """Mean IoU over classes that occur, pixel accuracy, and mean accuracy over classes that are true somewhere.

        Raises ValueError where no pixel was counted.
        """
        total = int(self.counts.sum())
        if not total:
            raise ValueError(
                "no pixel of the test images has a class, so nothing can be measured; look at their labels"
            )
        hits = self.counts.diagonal().double()
        return {
            "miou": self.iou.nanmean().item(),
            "pixel_accuracy": hits.sum().item() / total,
            "mean_accuracy": (hits / self.counts.sum(1)).nanmean().item(),
        }


class DepthErrors:
    """Errors over all valid pixels of all images together, in metres."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = dict.fromkeys(("delta1", "delta2", "delta3", "abs_rel", "square"), 0.0)

    def add(self, predicted: Float[Tensor, "*_"], truth: Float[Tensor, "*_"], valid: Bool[Tensor, "*_"]) -> None:
        prediction, true = predicted[valid].double().clamp_min(LEAST_DEPTH), truth[valid].double()
        ratio = torch.maximum(prediction / true, true / prediction)
        self.count += len(true)
        for power in (1, 2, 3):
            self.sums[f"delta{power}"] += (ratio < DELTA**power).sum().item()
        self.sums["abs_rel"] += ((prediction - true).abs() / true).sum().item()
        self.sums["square"] += (prediction - true).square().sum().item()

    def metrics(self) -> dict[str, float]:
        """Shares of pixels within 1.25, 1.25^2 and 1.25^3 of the truth, mean relative error, RMSE in metres.

        Eigen et al. (2014). Raises ValueError where no pixel was valid.
        """
        if not self.count:
            raise ValueError("no pixel of the test images has a depth, so nothing can be measured; look at their depth")
        metrics = {name: total / self.count for name, total in self.sums.items() if name != "square"}
        return metrics | {"rmse": math.sqrt(self.sums["square"] / self.count)}
