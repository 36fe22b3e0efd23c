"""Signals that need no labels: is the space of features used, or has it collapsed?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def rankme(features: Float[Tensor, "N D"]) -> float:
    """The smooth rank of a set of features, in 1 .. min(N, D): exp of the entropy of its normalised singular values.

    RankMe (Garrido et al., 2023, section 3). Features are not centred, as published.
    """
    x = features.detach().double()
    gram = x.T @ x if len(x) > x.shape[1] else x @ x.T  # its eigenvalues are the squares, and it is the cheaper of two
    sizes = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def feature_std(features: Float[Tensor, "N D"]) -> float:
    """How much features of length 1 vary: 1 when they fill every direction alike, 0 when all are the same.

    The mean over dimensions of the standard deviation over samples, times sqrt(D).
    """
    x = F.normalize(features.detach().double(), dim=1)
    return float(x.std(0, correction=0).mean() * x.shape[1] ** 0.5)
