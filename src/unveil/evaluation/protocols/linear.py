"""MAE's linear probe, on features that are computed once, and its optimiser LARS."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ...modeling.optim import warmup_cosine
from ..datasets import stratified_split
from ..fit import fit
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score, accuracies


class LARS(Optimizer):
    """SGD with momentum whose step is scaled to each weight's own norm (You et al., 2017).

    A parameter of one dimension (a bias) takes the plain step, without trust ratio and without weight decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    size, step = p.norm(), update.norm()
                    update = update * torch.where((size > 0) & (step > 0), group["trust"] * size / step, 1.0)
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * momentum)


BATCH_SIZE = 16384
EPOCHS = 90
WARMUP_SHARE = 10 / 90
EPS, BN_MOMENTUM = 1e-6, 0.1
VALIDATION_SHARE = 0.1
# A LARS step is a share of the weight's own norm, so few steps, or small ones, leave the weights where they began. A
# set smaller than a batch therefore keeps the batch's rate, as if it were repeated to fill one, and takes as many
# updates as CIFAR-10 has in 90 epochs.
MIN_UPDATES = 270


@dataclass(frozen=True)
class Linear:
    """A linear classifier after a BatchNorm without affine, trained by LARS (He et al., 2022, appendix A.1).

    lrs: learning rates per 256 images; of several, the one best on a tenth of the training images is used
    """

    needs: ClassVar[Needs] = "features"

    lrs: tuple[float, ...] = (0.1,)

    def run(self, encoder: FeatureEncoder, data: FeatureSplit, context: Context) -> Score:
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"learning rates are numbers above 0, one at least; got {self.lrs}")
        tried = _validated(data, self.lrs, context.seed) if len(self.lrs) > 1 else {}
        lr = max(tried, key=lambda rate: tried[rate]) if tried else self.lrs[0]
        batch_size, epochs = _schedule_for(len(data.train))
        probe = _train(data.train, data.train_labels, data.num_classes, (lr,), context.seed)
        with torch.inference_mode():
            scores = probe.logits(data.test, probe.mean, probe.var)[0]
        notes = ""
        if tried:
            notes += f" The rate was chosen among {len(tried)} on a tenth of the training set; the final fit uses all."
        if epochs > EPOCHS:
            notes += f" The set is small, so epochs were raised from {EPOCHS} to {epochs}."
        if batch_size < BATCH_SIZE:
            notes += f" A batch is the whole set, at the rate of {BATCH_SIZE}."
        return Score(
            metrics=accuracies(scores, data.test_labels),
            settings={
                "head": "BatchNorm1d(affine=False, eps=1e-6), Linear",
                "optimizer": "LARS(momentum=0.9, weight_decay=0, trust=0.001)",
                "lr": _peak(lr),
                "lrs_tried": {f"{_peak(rate):g}": accuracy for rate, accuracy in tried.items()},
                "batch_size": batch_size,
                "epochs": epochs,
                "warmup_epochs": round(epochs * WARMUP_SHARE, 1),
                "augmentation": None,
            },
            card=(
                "A linear classifier on frozen features, after MAE (He et al., 2022): BatchNorm without affine, LARS"
                f" at a rate of {_peak(lr):g} ({lr:g} x {BATCH_SIZE} / 256), batches of {batch_size}, {epochs} epochs,"
                " a ninth of them warm-up, then cosine decay. Unlike the published protocol, features are computed"
                " once from centre views, so there is no augmentation (random resized crop, flip), which on small"
                f" sets favours over-fitting; and the accuracy is that of the last epoch, not the best one.{notes}"
            ),
        )


def _peak(lr: float) -> float:
    return lr * BATCH_SIZE / 256


def _schedule_for(num_images: int) -> tuple[int, int]:
    batch_size = min(BATCH_SIZE, num_images)
    return batch_size, max(EPOCHS, math.ceil(MIN_UPDATES / (num_images // batch_size)))


def _validated(data: FeatureSplit, lrs: tuple[float, ...], seed: int) -> dict[float, float]:
    """The accuracy of each rate on a tenth of the training set, learned on the rest, all heads in one pass."""
    fit, held = (rows.to(data.train.device) for rows in stratified_split(data.train_labels, VALIDATION_SHARE, seed))
    probe = _train(data.train[fit], data.train_labels[fit], data.num_classes, lrs, seed)
    with torch.inference_mode():
        by_rate = probe.logits(data.train[held], probe.mean, probe.var)
    labels = data.train_labels[held]
    return {lr: accuracies(scores, labels)["accuracy"] for lr, scores in zip(lrs, by_rate, strict=True)}


class _Probe(nn.Module):
    """Heads on BatchNorm(x), with the norm folded into the weights: features need no gradient, so no normalised copy.

    All heads begin alike and see the same batches.
    """

    def __init__(self, dim: int, num_classes: int, heads: int, rng: torch.Generator, device: torch.device):
        super().__init__()
        first = nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.01, generator=rng)
        self.weights = nn.ParameterList(first.to(device, copy=True) for _ in range(heads))
        self.biases = nn.ParameterList(torch.zeros(num_classes, device=device) for _ in range(heads))
        self.mean = nn.Buffer(torch.zeros(dim, device=device))  # running averages, for evaluation
        self.var = nn.Buffer(torch.ones(dim, device=device))

    def logits(self, x: Float[Tensor, "B D"], mean: Tensor, var: Tensor) -> Float[Tensor, "H B K"]:
        weight = torch.cat(list(self.weights)) * (var + EPS).rsqrt()
        scores = F.linear(x, weight, torch.cat(list(self.biases)) - weight @ mean)
        return scores.view(len(x), len(self.weights), -1).transpose(0, 1)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "H B K"]:
        """By the batch's own statistics, which the running ones follow."""
        mean = x.mean(0)
        squares = torch.zeros_like(mean)
        for rows in x.split(256):  # so few rows stay in the cache: several times faster than torch.var
            squares += (rows - mean).square().sum(0)
        self.mean.lerp_(mean, BN_MOMENTUM)
        self.var.lerp_(squares / max(1, len(x) - 1), BN_MOMENTUM)
        return self.logits(x, mean, squares / len(x))


def _train(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_classes: int, lrs: tuple[float, ...], seed: int
) -> _Probe:
    rng = torch.Generator().manual_seed(seed)
    batch_size, epochs = _schedule_for(len(features))
    probe = _Probe(features.shape[1], num_classes, len(lrs), rng, features.device)
    heads = zip(probe.weights, probe.biases, lrs, strict=True)
    optimizer = LARS([{"params": [weight, bias], "scale": _peak(lr)} for weight, bias, lr in heads])
    updates = len(features) // batch_size  # an incomplete last batch is dropped, another one every epoch
    rows_of_batch = features.new_empty(batch_size, features.shape[1])

    def batches(epoch: int) -> Generator[Int[Tensor, " B"]]:
        order = torch.randperm(len(features), generator=rng).to(features.device)
        yield from order[: updates * batch_size].split(batch_size)

    def losses(rows: Int[Tensor, " B"]) -> Iterator[Float[Tensor, ""]]:
        torch.index_select(features, 0, rows, out=rows_of_batch)
        yield torch.stack([F.cross_entropy(scores, labels[rows]) for scores in probe(rows_of_batch)]).sum()

    fit(
        probe,
        losses,
        optimizer,
        batches,
        lambda epoch: warmup_cosine(epoch / epochs, 1.0, WARMUP_SHARE),
        epochs=epochs,
        steps_per_epoch=updates,
        name="the linear probe",
        advice=None if len(lrs) > 1 else "give lower --lrs",
    )
    return probe
