"""Multinomial logistic regression solved to the optimum: a linear probe without a learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..by_class import of_scores
from ..datasets import stratified_split
from ..kept_heads import linear_head
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score, accuracies, hits

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each solution starts the next, looser one
VALIDATION_SHARE = 0.1
PATIENCE = 2  # looser penalties over-fit more and take longest: stop after this many without a better one
MAX_ITERATIONS = 100
MAX_SIDE = 4096  # of the covariance that the solver is preconditioned by: of wider features it would take longest


@dataclass(frozen=True)
class LinearLBFGS:
    """L2-regularised logistic regression on standardised features; the penalty is chosen on held-out training data."""

    needs: ClassVar[Needs] = "features"
    keeps_head: ClassVar[bool] = True

    def run(self, encoder: FeatureEncoder, data: FeatureSplit, context: Context) -> Score:
        mean, std = data.train.mean(0), data.train.std(0).clamp_min(1e-6)
        train = (data.train - mean) / std
        covariance = _covariance(train)
        penalty, validated = _choose(train, covariance, data, context)
        weight, bias = logistic_regression(train, data.train_labels, data.num_classes, penalty, covariance=covariance)
        _progress(context, len(PENALTIES) + 1, len(train))
        scores = F.linear((data.test - mean) / std, weight, bias)
        if context.keep is not None:  # the standardisation becomes part of the layer
            context.keep(linear_head(encoder, weight / std, bias - weight @ (mean / std), context.pool))
        return Score(
            metrics=accuracies(scores, data.test_labels),
            outcomes={"accuracy": hits(scores, data.test_labels)},
            shown=of_scores(scores, data.test_labels),
            settings={
                "penalty": penalty,
                "penalties_tried": {f"{tried:g}": accuracy for tried, accuracy in validated.items()},
                "validation_share": VALIDATION_SHARE,
                "max_iterations": MAX_ITERATIONS,
            },
            card=(
                "Multinomial logistic regression on frozen features, standardised by the training set, solved by"
                " full-batch L-BFGS with strong-Wolfe line search. The L2 penalty (half of it times the squared"
                " weights, beside the mean cross-entropy) was chosen on a tenth of the training set; the final fit"
                f" uses all of it, at {penalty:g}. No augmentation. Not MAE's probe: numbers of the two do not"
                " compare."
            ),
        )


def logistic_regression(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    penalty: float,
    start: tuple[Float[Tensor, "K D"], Float[Tensor, " K"]] | None = None,
    covariance: Float[Tensor, "D D"] | None = None,
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """Weight and bias that minimise mean cross-entropy + penalty / 2 x squared weights (the bias is free).

    The `covariance` of the features, where it is given, shortens the way, not where it ends: weights are solved for in
    the coordinates in which the curvature at 0 is the same in all directions, which takes a third of the steps.
    """
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
    weight, bias = (s.clone() for s in start)
    root = None if covariance is None else _root_of_curvature(covariance, num_classes, penalty)
    free = (weight if root is None else weight @ root).requires_grad_()  # the weights in these coordinates
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [free, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def weights() -> Float[Tensor, "K D"]:
        if root is None:
            return free
        solved: Tensor = torch.linalg.solve_triangular(root, free, upper=False, left=False)
        return solved.contiguous()  # which halves the time of a step

    def closure() -> Tensor:
        solver.zero_grad()
        weight = weights()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weights().detach(), bias.detach()


def _covariance(features: Float[Tensor, "N D"]) -> Float[Tensor, "D D"] | None:
    """The covariance of standardised features; None where it would take longer than what it saves."""
    count, dim = features.shape
    return features.T @ features / count if dim <= min(count, MAX_SIDE) else None


def _root_of_curvature(covariance: Float[Tensor, "D D"], num_classes: int, penalty: float) -> Float[Tensor, "D D"]:
    """The lower triangular root of the objective's second derivative in the weights of a class, where all are 0."""
    curvature = covariance.double() * (num_classes - 1) / num_classes**2
    curvature.diagonal().add_(penalty + 1e-6 * float(curvature.diagonal().mean()))  # a feature may be a sum of others
    root: Tensor = torch.linalg.cholesky(curvature)
    return root.to(covariance.dtype)


def _progress(context: Context, fits: int, images: int) -> None:
    context.progress(f"linear-lbfgs of {context.subject}", fits * images, (len(PENALTIES) + 1) * images)


def _choose(
    train: Float[Tensor, "N D"], covariance: Float[Tensor, "D D"] | None, data: FeatureSplit, context: Context
) -> tuple[float, dict[float, float]]:
    """The penalty with the best validation accuracy (the strongest of equals), and the accuracy of each."""
    rows_of = stratified_split(data.train_labels, VALIDATION_SHARE, context.seed)
    fit, held = (rows.to(train.device) for rows in rows_of)
    fitted, fitted_labels = train[fit], data.train_labels[fit]
    held_out, held_out_labels = train[held], data.train_labels[held]
    solution = None
    validated: dict[float, float] = {}
    for penalty in PENALTIES:
        weight, bias = solution = logistic_regression(
            fitted, fitted_labels, data.num_classes, penalty, solution, covariance
        )
        validated[penalty] = accuracies(F.linear(held_out, weight, bias), held_out_labels)["accuracy"]
        _progress(context, len(validated), len(train))
        best = max(validated, key=lambda tried: validated[tried])
        if list(validated).index(best) <= len(validated) - 1 - PATIENCE:
            break
    return best, validated
