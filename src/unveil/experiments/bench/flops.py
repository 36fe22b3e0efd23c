"""What a step costs on paper: floating-point operations and parameters, counted without doing the work."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from .contenders import Contender, Work


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of one step on the whole batch, and trainable parameters."""

    flops: int
    parameters: int


def count_flops(contender: Contender, work: Work) -> StepCost:
    """Counts a forward and a backward pass of one image on the meta device, times the batch.

    Matrix products and convolutions count, two operations per multiply-add; norms, activations and the update do not.
    On the meta device attention is two matrix products, so the count is the same wherever the step then runs.
    """
    one = replace(work, batch_size=1)
    with torch.device("meta"):
        model = contender.build(one)
    with FlopCounterMode(display=False) as counter:
        for step in range(contender.period):
            model.before_step(step)
            model(one.batch("meta")).backward()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepCost(counter.get_total_flops() * work.batch_size // contender.period, parameters)
