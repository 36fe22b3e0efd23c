"""A budget of visible tokens per modality that adapts to the losses.

Shapes: B batch, M modalities, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .masking import TokenScore, score_by_budget
from .types import Batch, Observations, Tokens


class AdaptiveBudget(nn.Module):
    """A Dirichlet budget whose concentrations follow a moving average of each modality's loss.

    Losses differ in unit, so each is divided by its value at the first update. The concentrations are M alpha times the
    softmax of the logarithms of these ratios over `temperature`, at least `floor`: a modality whose loss has fallen
    least gets more of its tokens `visible`, or more of them `hidden`. `losses` names each modality's objective. Raises
    ValueError for an option outside its range.
    """

    average: Tensor
    start: Tensor

    def __init__(
        self,
        guide: TokenScore,
        losses: Mapping[str, str],
        alpha: float = 1.0,
        harder_gets: Literal["visible", "hidden"] = "visible",
        temperature: float = 1.0,
        floor: float = 0.1,
        momentum: float = 0.99,
    ):
        super().__init__()
        for name, value in {"alpha": alpha, "temperature": temperature, "floor": floor}.items():
            if not value > 0:
                raise ValueError(f"the {name} of an adaptive budget is above 0; got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum of an adaptive budget is from 0 and below 1; got {momentum}")
        self.guide, self.objectives = guide, dict(losses)
        self.alpha, self.temperature, self.floor, self.momentum = alpha, temperature, floor, momentum
        self.sign = 1.0 if harder_gets == "visible" else -1.0
        self.register_buffer("average", torch.zeros(len(losses)))
        self.register_buffer("start", torch.zeros(len(losses)))

    @property
    def concentrations(self) -> Float[Tensor, " M"]:
        """The current parameters of the Dirichlet distribution, in the order of `losses`."""
        has_start = self.start > 0
        ratio = torch.where(has_start, self.average / torch.where(has_start, self.start, 1), 1).clamp_min(1e-6)
        weight = (self.sign * ratio.log() / self.temperature).softmax(dim=0) * len(ratio)
        return (self.alpha * weight).clamp_min(self.floor)

    @torch.no_grad()
    def forward(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        indices = [list(self.objectives).index(name) for name in tokens.layout.spans]
        alpha = torch.stack([self.concentrations[index] for index in indices])
        return score_by_budget(self.guide(tokens, observations, batch), alpha, batch, tokens.layout)

    @torch.no_grad()
    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        """Move the averages towards the losses; the first update that is not skipped sets their start."""
        current = torch.stack([losses[name] for name in self.objectives.values()]).to(self.average)
        is_first = updated & (self.start == 0)
        self.start.copy_(torch.where(is_first, current, self.start))
        average = torch.where(is_first, current, self.average.lerp(current, 1 - self.momentum))
        self.average.copy_(torch.where(updated, average, self.average))
