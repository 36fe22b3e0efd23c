"""Losses: how far a guess is from the truth. One contract: `(guess, truth, valid) -> sum, count`, per sample.

Shapes: B batch, Q queries, T target width. `valid` weighs every number of the truth: 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LossSums = tuple[Float[Tensor, " B"], Float[Tensor, " B"]]
Loss = Callable[[Tensor, Tensor, Tensor], LossSums]


def _weigh(error: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    return (error * valid).sum(dim=(1, 2)), valid.expand_as(error).sum(dim=(1, 2))


def l2(guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """The squared error of each value, the loss of MAE."""
    return _weigh((guess - truth).square(), valid)


def l1(guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """Absolute error (SimMIM, arXiv 2111.09886, section 3.4)."""
    return _weigh((guess - truth).abs(), valid)


def cross_entropy(guess: Float[Tensor, "B Q L"], truth: Int[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """Cross-entropy of T pixels' classes; the guess holds each pixel's logits one pixel after another."""
    logits = guess.unflatten(-1, (truth.shape[-1], -1))  # B Q T classes
    error = F.cross_entropy(logits.flatten(0, -2), truth.flatten(), reduction="none")
    return _weigh(error.unflatten(0, truth.shape), valid)


def smooth_l1(
    guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor, beta: float = 1.0
) -> LossSums:
    """Squared below an error of `beta`, absolute above it; a `beta` of 0 is the absolute error."""
    return _weigh(F.smooth_l1_loss(guess, truth, reduction="none", beta=beta), valid)


def cosine(guess: Float[Tensor, "B Q T"], truth: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """2 - 2 cos of guess and truth: the squared distance of their directions (MILAN, arXiv 2208.06049)."""
    error = 2 - 2 * F.cosine_similarity(guess, truth, dim=-1)[..., None]
    return _weigh(error, valid.to(error.dtype).mean(dim=-1, keepdim=True))


LOSSES: dict[str, Loss] = {
    "l2": l2,
    "l1": l1,
    "smooth-l1": smooth_l1,
    "cosine": cosine,
    "cross-entropy": cross_entropy,
}
