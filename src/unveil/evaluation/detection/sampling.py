"""Which anchors and proposals are learned from: drawn for each image by its own key, whatever it is batched with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...modeling.rng import SampleRng


class KeyedSampler:
    """At most `count` of an image's boxes, of which at most a `share` are objects; the others are background.

    It is called as torchvision's sampler, with the class of each box (0 background, below 0 neither), and returns
    which are taken as objects and which as background. `keys` are those of the images, in order.
    """

    def __init__(self, count: int, share: float, purpose: str):
        self.count, self.share, self.purpose = count, share, purpose
        self.keys: Int[Tensor, " B"] = torch.zeros(0, dtype=torch.int64)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Bool[Tensor, " N"]], list[Bool[Tensor, " N"]]]:
        objects, background = [], []
        for key, own in zip(self.keys.split(1), labels, strict=True):
            order = SampleRng(key).uniform(self.purpose, len(own))[0].to(own.device)
            positive = _lowest(order, own >= 1, int(self.count * self.share))
            negative = _lowest(order, own == 0, self.count - int(positive.sum()))
            objects.append(positive)
            background.append(negative)
        return objects, background


def _lowest(order: Tensor, among: Bool[Tensor, " N"], count: int) -> Bool[Tensor, " N"]:
    """The `count` of some boxes with the lowest numbers, or all of them."""
    if int(among.sum()) <= count:
        return among
    chosen = torch.where(among, order, 2.0).argsort(stable=True)[:count]
    mask = torch.zeros_like(among)
    mask[chosen] = True
    return mask
