"""What is predicted at every pixel, and the losses of a prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ...modeling.types import Modality

DenseLoss = Callable[[Float[Tensor, "B K H W"], Shaped[Tensor, "B 1 H W"], Bool[Tensor, "B 1 H W"]], Float[Tensor, ""]]
BERHU_SHARE, BERHU_LEAST = 0.2, 1e-5


@dataclass(frozen=True)
class DenseTarget:
    """A map to predict: `outputs` numbers for each pixel, whose `loss` is a sum over valid pixels."""

    modality: Modality
    outputs: int
    loss: DenseLoss


def classes_loss(
    guess: Float[Tensor, "B K H W"], truth: Shaped[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, ""]:
    """The sum of the cross-entropy over the valid pixels."""
    error = F.cross_entropy(guess, torch.where(valid, truth, 0)[:, 0].long(), reduction="none")
    return (error * valid[:, 0]).sum()


@dataclass(frozen=True)
class DepthLoss:
    """The error of depth that is normalised by the training set's mean and deviation, in metres.

    L1, or BerHu: above c, a fifth of the largest error in the batch, the square (e^2 + c^2) / 2c takes over (Laina et
    al., 2016, section 3.2).
    """

    mean: float
    std: float
    is_berhu: bool = True

    def __call__(
        self, guess: Float[Tensor, "B K H W"], truth: Shaped[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
    ) -> Float[Tensor, ""]:
        error = torch.where(valid, (guess - (truth - self.mean) / self.std).abs(), 0)
        if self.is_berhu:
            c = (BERHU_SHARE * error.detach().amax()).clamp_min(BERHU_LEAST)
            error = torch.where(error < c, error, (error.square() + c.square()) / (2 * c))
        return error.sum()

    def metres(self, guess: Float[Tensor, "*_"]) -> Float[Tensor, "*_"]:
        return guess * self.std + self.mean
