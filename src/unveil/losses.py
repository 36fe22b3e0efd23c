"""Losses: how far a guess is from the truth. One contract: `(guess, truth, valid) -> sum, count`, per sample.

Shapes: B batch, Q queries, T target width. `valid` weighs every number of the truth: 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Weighed = tuple[Float[Tensor, " B"], Float[Tensor, " B"]]
Loss = Callable[[Tensor, Tensor, Tensor], Weighed]


def _weigh(error: Float[Tensor, "B Q T"], valid: Tensor) -> Weighed:
    return (error * valid).sum(dim=(1, 2)), valid.expand_as(error).sum(dim=(1, 2))


def l2(guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor) -> Weighed:
    """Squared error (MAE)."""
    return _weigh((guess - truth).square(), valid)


def l1(guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor) -> Weighed:
    """Absolute error (SimMIM, arXiv 2111.09886, section 3.4)."""
    return _weigh((guess - truth).abs(), valid)


def smooth_l1(guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor) -> Weighed:
    """Squared below an error of 1, absolute above it."""
    return _weigh(F.smooth_l1_loss(guess, truth, reduction="none"), valid)
