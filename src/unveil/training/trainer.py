"""One model and its optimizer, an update at a time. It knows no time: no epochs, no schedule, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..modeling.masked_model import Losses, MaskedModel
from ..modeling.optim import Optim, adamw
from ..modeling.types import Batch
from .distributed import SINGLE_PROCESS, Group


@dataclass(frozen=True)
class Settings:
    """How a run uses its machine: nothing here changes what is learned beyond rounding."""

    device: str
    precision: str
    micro_batch: int
    compile: bool
    save_minutes: float
    val_every: float  # epochs
    save_every: float | None = None  # epochs


@dataclass(frozen=True)
class Update:
    """What one step was: kept on the device, so that looking at it later costs no wait now."""

    losses: Mapping[str, Float[Tensor, ""]]
    norm: Float[Tensor, ""]
    skipped: Bool[Tensor, ""]


class Trainer:
    """Makes updates, and refuses those that are not finite: then weights, moments and averages stay as they were.

    In a group of processes each makes the same updates, from the gradients of all.
    """

    def __init__(self, model: MaskedModel, optim: Optim, settings: Settings, group: Group = SINGLE_PROCESS):
        self.model, self.optim, self.settings = model.to(settings.device).train(), optim, settings
        self.group = group
        self.optimizer = adamw(self.model, optim)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.forward: Callable[[Batch], Losses] = group.wrap(compiled(model) if settings.compile else model)

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
                found = self.model.count_samples(part.on(self.settings.device))
            counts = {name: counts.get(name, 0) + count for name, count in found.items()}
        return self.group.all_reduce(counts)

    def update(self, batch: Batch, lr: float) -> Update:
        """One step on a whole batch, micro-batch by micro-batch; in a group, on this process's part of it.

        An objective's loss is the mean over the samples of the whole batch that count for it. Where that number may
        differ between micro-batches, it is found first; else each has its share of it. The parts of the processes have
        the same number of samples.
        """
        self.model.masker.check(self.model.encoder.layout(batch), batch.present)
        size = self.settings.micro_batch
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        is_uneven = len(parts) > 1 and self.group.any(self.model.is_uneven(batch))
        counts = self.counts(parts) if is_uneven else {}
        means: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            with self.group.sync_gradients(self.forward, now=number == len(parts)):
                with self.autocast():
                    found = self.forward(part.on(self.settings.device))
                counted = self._counted({name: count for name, (_, count) in found.items()}, len(part) / len(batch))
                own = {name: total / (counted | counts)[name].clamp_min(1) for name, (total, _) in found.items()}
                # the exchange takes the mean over the processes, and the loss is a sum over them
                (self.group.size * torch.stack(list(own.values())).sum()).backward()
            means = {name: means.get(name, 0) + value.detach() for name, value in own.items()}
        means = self.group.all_reduce(means)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        skipped = ~torch.stack([norm, *means.values()]).isfinite().all()
        if self.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.optim.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernel itself leaves weights and moments alone when told so: the check needs no wait for the device.
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(means, ~skipped)  # an average takes no step that was not made
        return Update(means, norm, skipped)

    def _counted(self, counts: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """How many samples of the whole batch count, by those of a part that is this share of the process's own."""
        if share == 1:
            return self.group.all_reduce(counts)
        return {name: count * (self.group.size / share) for name, count in counts.items()}  # for parts that are alike


def compiled(model: MaskedModel) -> Callable[[Batch], Losses]:
    """The model compiled as one graph."""
    return torch.compile(model, fullgraph=True, dynamic=False)
