"""A classifier over an encoder that learns with it: head, stochastic depth, layer-wise rates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.rng import SampleRng
from ..types import TrainableEncoder

TokenPool = Literal["cls", "mean", "all"]
HEAD_STD = 2e-5


class Classifier(nn.Module):
    """A copy of an encoder, a pool of its tokens, a norm, and a linear head that begins almost at zero.

    `mean` averages the patches under a norm of its own, as MAE does; `all` averages the prefix tokens too, as MultiMAE
    does; `cls` is the class token under the encoder's own final norm, where it has one.
    """

    def __init__(self, encoder: TrainableEncoder, num_classes: int, pool: TokenPool, rng: torch.Generator):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.pool = pool
        has_own = pool == "cls" and isinstance(encoder.final_norm, nn.LayerNorm)
        self.norm = None if has_own else nn.LayerNorm(encoder.dim, eps=1e-6)
        self.head = nn.Linear(encoder.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, a=-2 * HEAD_STD, b=2 * HEAD_STD, generator=rng)
        nn.init.zeros_(self.head.bias)
        self.to(encoder.device).requires_grad_(True)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        (tokens,) = self.encoder.maps(images, [self.encoder.depth])
        first = self.encoder.num_prefix if self.pool == "mean" else 0
        pooled = tokens[:, 0] if self.pool == "cls" else tokens[:, first:].mean(1)
        norm = self.encoder.final_norm if self.norm is None else self.norm
        scores: Tensor = self.head(norm(pooled))
        return scores


def layer_groups(model: nn.Module, encoder: TrainableEncoder, decay: float, weight_decay: float) -> list[dict]:
    """Parameter groups for fine-tuning: the rate of layer k is scaled by decay ** (depth + 1 - k) (Clark et al., 2020).

    `encoder` is the model's part of that name; what else the model has is after the last block. Vectors do not decay,
    nor do tokens and tables of positions, whose first dimension is 1 (the public MAE code frees them here).
    """
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = name.removeprefix("encoder.")
            layer = encoder.layer_of(inner) if inner != name else encoder.depth + 1
            is_free = parameter.ndim == 1 or len(parameter) == 1
            fresh = {"params": [], "weight_decay": 0.0 if is_free else weight_decay}
            group = groups.setdefault((layer, is_free), fresh | {"scale": decay ** (encoder.depth + 1 - layer)})
            group["params"].append(parameter)
    return list(groups.values())


class StochasticDepth:
    """Leaves residual branches out, for each sample by itself, while the model trains (Huang et al., 2016).

    The rate grows linearly from 0 in the first block to `rate` in the last; what is kept is scaled up. The branches are
    hooked, so a model without it pays nothing.
    """

    def __init__(self, branches: Sequence[Sequence[nn.Module]], rate: float):
        hooked = [(k, branch) for k, block in enumerate(branches) for branch in block] if rate else []
        self.keep = torch.tensor([1 - rate * k / max(1, len(branches) - 1) for k, _ in hooked])
        self.factors: Tensor | None = None
        for index, (_, branch) in enumerate(hooked):
            branch.register_forward_hook(partial(self._scale, index))

    def draw(self, rng: SampleRng) -> None:
        """Decide for the samples of the next forward pass."""
        if len(self.keep):
            keep = self.keep.to(rng.key.device)
            self.factors = (rng.uniform("drop path", len(keep)) < keep) / keep

    def _scale(self, index: int, module: nn.Module, given: Any, out: Tensor) -> Tensor:
        if not module.training or self.factors is None:
            return out
        return out * self.factors[:, index, None, None].to(out.dtype)
