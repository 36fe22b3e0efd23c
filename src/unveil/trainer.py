"""One model and its optimizer, an update at a time. It knows no time: no epochs, no schedule, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .model import Losses, MaskedModel
from .optim import Optim, adamw
from .records import Batch


@dataclass(frozen=True)
class Settings:
    """How a run uses its machine: nothing here changes what is learned beyond rounding."""

    device: str
    precision: str
    micro_batch: int
    compile: bool
    save_minutes: float
    signals_every: float  # epochs


@dataclass(frozen=True)
class Update:
    """What one step was: kept on the device, so that looking at it later costs no wait now."""

    losses: Mapping[str, Float[Tensor, ""]]
    norm: Float[Tensor, ""]
    refused: Bool[Tensor, ""]


class Trainer:
    """Makes updates, and refuses those that are not finite: then weights, moments and averages stay as they were."""

    def __init__(self, model: MaskedModel, optim: Optim, settings: Settings):
        self.model, self.optim, self.settings = model.to(settings.device).train(), optim, settings
        self.optimizer = adamw(self.model, optim)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.forward: Callable[[Batch], Losses] = compiled(model) if settings.compile else model

    def adopt(self, moments: Mapping[Tensor, Any]) -> None:
        """Take over the moments of the parameters that an earlier stage trained too; the others start at zero."""
        for parameter in self.parameters:
            if parameter in moments:
                self.optimizer.state[parameter] = moments[parameter]

    def autocast(self) -> torch.autocast:
        """The precision of the arithmetic, as a context."""
        is_bf16 = self.settings.precision == "bf16"
        return torch.autocast(torch.device(self.settings.device).type, torch.bfloat16, enabled=is_bf16)

    def counts(self, parts: Sequence[Batch]) -> dict[str, Int[Tensor, ""]]:
        """How many samples of all micro-batches count for each objective, before the first of them is trained on."""
        counts: dict[str, Tensor] = {}
        for part in parts:
            with self.autocast():
                found = self.model.counts(part.on(self.settings.device))
            counts = {name: counts.get(name, 0) + count for name, count in found.items()}
        return counts

    def update(self, batch: Batch, lr: float) -> Update:
        """One step on a whole batch, micro-batch by micro-batch.

        An objective's loss is the mean over the samples of the whole batch that count for it. Where that number may
        differ between micro-batches, it is found first; else each has its share of it.
        """
        self.model.masker.check(self.model.encoder.layout(batch), batch.present)
        size = self.settings.micro_batch
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        counts = self.counts(parts) if len(parts) > 1 and self.model.is_uneven(batch) else {}
        means: dict[str, Tensor] = {}
        for part in parts:
            with self.autocast():
                found = self.forward(part.on(self.settings.device))
            share = len(part) / len(batch)
            own = {
                name: total / (counts[name] if name in counts else count / share).clamp_min(1)
                for name, (total, count) in found.items()
            }
            torch.stack(list(own.values())).sum().backward()
            means = {name: means.get(name, 0) + value.detach() for name, value in own.items()}
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        refused = ~torch.stack([norm, *means.values()]).isfinite().all()
        if self.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.optim.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernel itself leaves weights and moments alone when told so: the check needs no wait for the device.
        self.optimizer.found_inf = refused.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(means, ~refused)  # an average takes no step that was not made
        return Update(means, norm, refused)


def compiled(model: MaskedModel) -> Callable[[Batch], Losses]:
    """The model compiled as one graph."""
    return torch.compile(model, fullgraph=True, dynamic=False)
