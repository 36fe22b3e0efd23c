"""Mixup and CutMix: images and labels of a batch mixed with those of the same batch in reverse order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

SWITCH = 0.5  # how often a batch is cut where both are on


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: `own` is the share of each label that stays.

    With a `box` (top, bottom, left, right), that part of each image is its partner's (CutMix, Yun et al., 2019);
    without one, the whole image is `own` of itself and the rest its partner's (mixup, Zhang et al., 2018).
    """

    own: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator, mixup: float, cutmix: float, size: tuple[int, int]) -> Mix:
        """The mix of a batch of images of this size: shares from Beta(alpha, alpha), an alpha of 0 turns one off."""
        is_cut = cutmix > 0 and (mixup == 0 or rng.random() < SWITCH)
        alpha = cutmix if is_cut else mixup
        own = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
        if not is_cut:
            return cls(own)
        edges: list[int] = []
        for side in size:
            half, centre = int(side * (1 - own) ** 0.5) // 2, int(rng.integers(side))
            edges += [max(0, centre - half), min(side, centre + half)]
        top, bottom, left, right = edges
        return cls(1 - (bottom - top) * (right - left) / (size[0] * size[1]), (top, bottom, left, right))


def mix_images(images: Float[Tensor, "B C H W"], mix: Mix) -> Float[Tensor, "B C H W"]:
    """Each image mixed with its partner, the one at the same place from the end."""
    if mix.box is None:
        return images if mix.own == 1 else torch.lerp(images.flip(0), images, mix.own)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


def soft_labels(labels: Int[Tensor, " B"], num_classes: int, smoothing: float, mix: Mix) -> Float[Tensor, "B K"]:
    """Labels as probabilities: smoothed (Szegedy et al., 2016, section 7), then mixed as the images were."""
    hard = F.one_hot(labels, num_classes).float()
    smooth = hard * (1 - smoothing) + smoothing / num_classes
    return torch.lerp(smooth.flip(0), smooth, mix.own)
