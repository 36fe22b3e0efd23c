"""Normalisations of features, fitted on images without their labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Normalize = Literal["none", "standardize", "whiten", "l2"]

SHRINKAGE = 0.1  # of the mean variance, added to that of every direction: those that hold next to nothing stay small
MANY = 1024  # dimensions, beyond which principal directions take seconds and more
MAX_SIDE = 4096  # of the covariance: larger ones are estimated from as many training samples


class Normalizer(nn.Module):
    """Features B D -> features B R: less `mean`, then times `scale`, D standard deviations' inverses or D x R.

    Without both it is the division by the Euclidean length. It computes in float32, also under autocast.
    """

    mean: Tensor | None
    scale: Tensor | None

    def __init__(self, kind: Normalize, mean: Tensor | None = None, scale: Tensor | None = None):
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def fit(cls, features: Float[Tensor, "N D"], kind: Normalize) -> Normalizer:
        """The normalisation of this kind by these features. Raises ValueError for fewer than two of them."""
        if kind in ("none", "l2"):
            return cls(kind)
        if len(features) < 2:
            raise ValueError(f"--normalize {kind} needs 2 images to be fitted on, and {len(features)} can be read")
        features = features.float()
        if kind == "whiten":
            return cls(kind, *whitening(features))
        return cls(kind, features.mean(0), 1 / features.std(0).clamp_min(1e-6))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B R"]:
        with torch.autocast(features.device.type, enabled=False):
            x = features.float()
            if self.kind == "l2":
                x = F.normalize(x, dim=1)
            if self.mean is not None and self.scale is not None:
                x = x - self.mean
                x = x * self.scale if self.scale.ndim == 1 else x @ self.scale
            return x.to(features.dtype)


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
