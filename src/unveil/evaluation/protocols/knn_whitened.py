"""Nearest neighbours where every direction of the features counts alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Score, Split
from .knn import knn

SHRINKAGE = 0.1  # of the mean variance, added to that of every direction: those that hold next to nothing stay small
MAX_SIDE = 4096  # of the matrix whose eigenvectors are sought: beyond it they are those of as many training samples


def knn_whitened(split: Split, seed: int = 0) -> Score:
    """Weighted k-NN by cosine similarity of features that are centred and whitened by the training set."""
    mean, directions = whitening(split.train)
    found = knn(
        replace(split, train=(split.train - mean) @ directions, test=(split.test - mean) @ directions), seed=seed
    )
    return replace(
        found,
        settings={**found.settings, "shrinkage": SHRINKAGE},
        card=(
            f"{found.card} Before it the features are centred and whitened by the training set, without its labels:"
            f" each principal direction is divided by its standard deviation ({SHRINKAGE:g} of the mean variance added"
            " to each variance). What masked image modelling learns lies in many directions of which a few are far"
            " longer than the others and decide a cosine alone; a linear probe undoes that, plain k-NN does not."
        ),
    )


def whitening(features: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "D R"]]:
    """The mean, and the R <= D directions in which features less the mean are nearly uncorrelated, of variance <= 1."""
    mean = features.mean(0)
    seen = (features - mean).double()
    if min(seen.shape) > MAX_SIDE:
        seen = seen[torch.linspace(0, len(seen) - 1, MAX_SIDE, device=seen.device).long()]
    count, dim = seen.shape
    if count >= dim:
        variances, directions = torch.linalg.eigh(seen.T @ seen / count)
    else:  # the same directions from the smaller matrix, but for those in which nothing varies
        variances, mixes = torch.linalg.eigh(seen @ seen.T / count)
        varies = variances > 1e-10 * variances.max().clamp_min(1e-30)
        variances = variances[varies]
        directions = seen.T @ mixes[:, varies] / (count * variances).sqrt()
    variances = variances.clamp_min(0)
    floor = (SHRINKAGE * variances.sum() / dim).clamp_min(1e-30)
    return mean, (directions / (variances + floor).sqrt()).to(features.dtype)
