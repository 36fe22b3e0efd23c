"""MAE's linear probe, on features that are computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .lars import LARS
from .protocol import Score, Split, accuracies

BATCH_SIZE = 16384
LR = 0.1 * BATCH_SIZE / 256
EPOCHS = 90
WARMUP_SHARE = 10 / 90
EPS, BN_MOMENTUM = 1e-6, 0.1
# A LARS step is a share of the weight's own norm, so few steps, or small ones, leave the weights where they began. A
# set smaller than a batch therefore keeps the batch's rate, as if it were repeated to fill one, and takes as many
# updates as CIFAR-10 has in 90 epochs.
MIN_UPDATES = 270


def linear(split: Split, seed: int = 0) -> Score:
    """A linear classifier after a BatchNorm without affine, trained by LARS (He et al., 2022, appendix A.1)."""
    batch_size = min(BATCH_SIZE, len(split.train))
    epochs = max(EPOCHS, math.ceil(MIN_UPDATES / (len(split.train) // batch_size)))
    probe = _train(split.train, split.train_labels, split.num_classes, epochs, batch_size, seed)
    with torch.inference_mode():
        scores = probe.logits(split.test, probe.mean, probe.var)
    fitted = ""
    if epochs > EPOCHS:
        fitted += f" The set is small, so epochs were raised from {EPOCHS} to {epochs}."
    if batch_size < BATCH_SIZE:
        fitted += f" A batch is the whole set, at the rate of {BATCH_SIZE}."
    return Score(
        metrics=accuracies(scores, split.test_labels),
        settings={
            "head": "BatchNorm1d(affine=False, eps=1e-6), Linear",
            "optimizer": "LARS(momentum=0.9, weight_decay=0, trust=0.001)",
            "lr": LR,
            "batch_size": batch_size,
            "epochs": epochs,
            "warmup_epochs": round(epochs * WARMUP_SHARE, 1),
            "augmentation": None,
        },
        card=(
            "A linear classifier on frozen features, after MAE (He et al., 2022): BatchNorm without affine, LARS at a"
            f" rate of {LR} (0.1 x {BATCH_SIZE} / 256), batches of {batch_size}, {epochs} epochs, a ninth of them"
            " warm-up, then cosine decay. Unlike the published protocol, features are computed once from centre views,"
            " so there is no augmentation (random resized crop, flip), which on small sets favours over-fitting; and"
            f" the accuracy is that of the last epoch, not the best one.{fitted}"
        ),
    )


@dataclass(frozen=True)
class _Probe:
    """Linear(BatchNorm(x)), with the norm folded into the weights: features need no gradient, so no normalised copy."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    mean: Float[Tensor, " D"]  # running averages, for evaluation
    var: Float[Tensor, " D"]

    @classmethod
    def fresh(cls, dim: int, num_classes: int, chance: torch.Generator, device: torch.device) -> _Probe:
        weight = nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.01, generator=chance)
        weight, bias = weight.to(device).requires_grad_(), torch.zeros(num_classes, device=device, requires_grad=True)
        return cls(weight, bias, torch.zeros(dim, device=device), torch.ones(dim, device=device))

    def logits(self, x: Float[Tensor, "B D"], mean: Tensor, var: Tensor) -> Float[Tensor, "B K"]:
        weight = self.weight * (var + EPS).rsqrt()
        return F.linear(x, weight, self.bias - weight @ mean)

    def train_logits(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """By the batch's own statistics, which the running ones follow."""
        mean = x.mean(0)
        squares = torch.zeros_like(mean)
        for rows in x.split(256):  # so few rows stay in the cache: several times faster than torch.var
            squares += (rows - mean).square().sum(0)
        self.mean.lerp_(mean, BN_MOMENTUM)
        self.var.lerp_(squares / max(1, len(x) - 1), BN_MOMENTUM)
        return self.logits(x, mean, squares / len(x))


def _train(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_classes: int, epochs: int, batch_size: int, seed: int
) -> _Probe:
    chance = torch.Generator().manual_seed(seed)
    probe = _Probe.fresh(features.shape[1], num_classes, chance, features.device)
    optimizer = LARS([probe.weight, probe.bias], LR)
    batches = len(features) // batch_size  # an incomplete last batch is dropped, another one every epoch
    batch = features.new_empty(batch_size, features.shape[1])
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=chance).to(features.device)
        for i in range(batches):
            optimizer.param_groups[0]["lr"] = LR * _schedule((epoch + i / batches) / epochs)
            rows = order[i * batch_size : (i + 1) * batch_size]
            torch.index_select(features, 0, rows, out=batch)
            optimizer.zero_grad()
            F.cross_entropy(probe.train_logits(batch), labels[rows]).backward()
            optimizer.step()
    return probe


def _schedule(done: float) -> float:
    """Linear warm-up, then half a cosine to zero; `done` is the share of training in [0, 1)."""
    if done < WARMUP_SHARE:
        return done / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
