"""Losses. One contract: `(prediction, target, valid) -> sum, count`, per sample.

Shapes: B batch, Q queries, T numbers of a target, L logits. `valid` weights every number of the target: 0 where it is
unknown.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LossSums = tuple[Float[Tensor, " B"], Float[Tensor, " B"]]
Loss = Callable[[Tensor, Tensor, Tensor], LossSums]


def _weighted_sum(error: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    return (error * valid).sum(dim=(1, 2)), valid.expand_as(error).sum(dim=(1, 2))


def l2(prediction: Float[Tensor, "B Q T"], target: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """Squared error of each value (MAE, arXiv 2111.06377)."""
    return _weighted_sum((prediction - target).square(), valid)


def l1(prediction: Float[Tensor, "B Q T"], target: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """Absolute error (SimMIM, arXiv 2111.09886, section 3.4)."""
    return _weighted_sum((prediction - target).abs(), valid)


def cross_entropy(prediction: Float[Tensor, "B Q L"], target: Int[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """Cross-entropy of T pixels' classes; the prediction holds the logits of one pixel after another."""
    logits = prediction.unflatten(-1, (target.shape[-1], -1))  # B Q T classes
    error = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return _weighted_sum(error.unflatten(0, target.shape), valid)


def smooth_l1(
    prediction: Float[Tensor, "B Q T"], target: Float[Tensor, "B Q T"], valid: Tensor, beta: float = 1.0
) -> LossSums:
    """Squared below an error of `beta`, absolute above it; a `beta` of 0 is the absolute error."""
    return _weighted_sum(F.smooth_l1_loss(prediction, target, reduction="none", beta=beta), valid)


def cosine(prediction: Float[Tensor, "B Q T"], target: Float[Tensor, "B Q T"], valid: Tensor) -> LossSums:
    """2 - 2 cos of prediction and target: the squared distance of their directions (MILAN, arXiv 2208.06049)."""
    error = 2 - 2 * F.cosine_similarity(prediction, target, dim=-1)[..., None]
    return _weighted_sum(error, valid.to(error.dtype).mean(dim=-1, keepdim=True))


LOSSES: dict[str, Loss] = {"l2": l2, "l1": l1, "smooth-l1": smooth_l1, "cosine": cosine, "cross-entropy": cross_entropy}
