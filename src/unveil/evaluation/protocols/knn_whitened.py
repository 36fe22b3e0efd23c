"""Nearest neighbours of whitened features: every direction counts alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score
from .knn import Knn

SHRINKAGE = 0.1  # of the mean variance, added to that of every direction: those that hold next to nothing stay small
MANY = 1024  # dimensions, beyond which principal directions take seconds and more
MAX_SIDE = 4096  # of the covariance: larger ones are estimated from as many training samples


@dataclass(frozen=True)
class KnnWhitened:
    """Weighted k-NN by cosine similarity of features that are centred and whitened by the training set."""

    needs: ClassVar[Needs] = "features"

    def run(self, encoder: FeatureEncoder, data: FeatureSplit, context: Context) -> Score:
        mean, directions = whitening(data.train)
        white = replace(data, train=(data.train - mean) @ directions, test=(data.test - mean) @ directions)
        score = Knn().run(encoder, white, context)
        return replace(
            score,
            settings={**score.settings, "shrinkage": SHRINKAGE},
            card=(
                f"{score.card} Before it the features are centred and whitened by the training set, without its"
                f" labels: each principal direction is divided by its standard deviation ({SHRINKAGE:g} of the mean"
                " variance added to each variance). What masked image modelling learns lies in many directions of"
                " which a few are far longer than the others and decide a cosine alone; a linear probe undoes that,"
                " plain k-NN does not."
            ),
        )


def whitening(features: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "D R"]]:
    """The mean, and the R <= D directions in which features less the mean are nearly uncorrelated, of variance <= 1.

    They are the principal ones, or, of more than `MANY` dimensions, those of the Cholesky root, which take a tenth of
    the time. These are less alike in length and correlated, but a rotation of the others, which changes no cosine.
    """
    mean = features.mean(0)
    centred = (features - mean).double()
    if min(centred.shape) > MAX_SIDE:
        centred = centred[torch.linspace(0, len(centred) - 1, MAX_SIDE, device=centred.device).long()]
    count, dim = centred.shape
    floor = (SHRINKAGE * centred.square().sum() / (count * dim)).clamp_min(1e-30)
    if count >= dim > MANY:
        covariance = centred.T @ centred / count
        covariance.diagonal().add_(floor)
        one = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
        root = torch.linalg.cholesky(covariance)
        return mean, torch.linalg.solve_triangular(root, one, upper=False).T.to(features.dtype)
    if count >= dim:
        variances, directions = torch.linalg.eigh(centred.T @ centred / count)
    else:  # the same directions from the smaller matrix, but for those in which nothing varies
        variances, mixes = torch.linalg.eigh(centred @ centred.T / count)
        varies = variances > 1e-10 * variances.max().clamp_min(1e-30)
        variances = variances[varies]
        directions = centred.T @ mixes[:, varies] / (count * variances).sqrt()
    variances = variances.clamp_min(0)
    return mean, (directions / (variances + floor).sqrt()).to(features.dtype)
