"""One model and its optimizer, one update at a time: no epochs, no schedule, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..modeling.masked_model import Losses, MaskedModel
from ..modeling.optim import Optim, make_optimizer
from ..modeling.types import Batch
from ..runs import checkpoint
from ..runs.dtensors import gathered
from ..runs.run_config import CheckpointFormat
from . import sharding
from .compiled import CompiledModel, even_size
from .distributed import SINGLE_PROCESS, Group


@dataclass(frozen=True)
class Settings:
    """How a run uses its machine; nothing here changes the result beyond rounding."""

    device: str
    precision: str
    micro_batch: int
    compile: bool
    save_minutes: float
    val_every: float  # epochs
    save_every: float | None = None  # epochs
    shard: bool = False  # FSDP2 instead of DDP, where there are several processes
    checkpoint_activations: bool = False
    checkpoint_format: CheckpointFormat = "safetensors"  # dcp: of several processes each writes its part
    adaptive_threads: int = 0  # the most threads of a CPU, where their number follows the load; 0 keeps it


@dataclass(frozen=True)
class Update:
    """The losses and gradient norm of a step, on the device, so that no step waits for them."""

    losses: Mapping[str, Float[Tensor, ""]]
    norm: Float[Tensor, ""]
    skipped: Bool[Tensor, ""]

    def on(self, device: torch.device) -> Update:
        """A copy whose losses and norm lie on a device."""
        losses = {name: loss.to(device) for name, loss in self.losses.items()}
        return Update(losses, self.norm.to(device), self.skipped.to(device))


class Trainer:
    """Updates a model, and skips non-finite updates: then weights, moments and averages stay as they were.

    In a group of processes each makes the same updates, from the averaged gradients. Where the settings say `shard`,
    `model` is a sharded copy of the one that is given, which `whole` brings up to date.
    """

    def __init__(self, model: MaskedModel, optim: Optim, settings: Settings, group: Group = SINGLE_PROCESS):
        self.given, self.optim, self.settings, self.group = model, optim, settings, group
        self.is_sharded = settings.shard and group.size > 1
        self.saves_in_parts = settings.checkpoint_format == "dcp" and group.size > 1
        if self.is_sharded:
            self.model = sharding.sharded(model.cpu().train(), torch.device(settings.device), settings.precision)
        else:
            self.model = model.to(settings.device).train()
        if settings.checkpoint_activations:
            sharding.checkpoint_activations(self.model)
        self.optimizer = make_optimizer(self.model, optim)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        inner: Any = CompiledModel(self.model) if settings.compile else self.model
        self.forward: Callable[[Batch], Losses] = inner if self.is_sharded else group.wrap(inner)

    def adopt(self, before: Trainer) -> None:
        """Take over the moments of parameters that the previous stage trained too; the others start at zero."""
        if self.is_sharded:
            own = {parameter: name for name, parameter in self.given.named_parameters()}
            names = {name: own[p] for name, p in before.given.named_parameters() if p in own}
            split = [(*key.rpartition(":"), value) for key, value in before.moments().items()]
            self.restore({f"{names[name]}:{moment}": v for name, _, moment, v in split if name in names})
            return
        for parameter in self.parameters:
            if parameter in before.optimizer.state:
                self.optimizer.state[parameter] = before.optimizer.state[parameter]

    @contextmanager
    def whole(self) -> Iterator[MaskedModel]:
        """The whole model with the current weights, on rank zero on the device. All processes call it where sharded."""
        if not self.is_sharded:
            yield self.model
            return
        sharding.gather_into(self.given, self.model)
        try:
            yield self.given.to(self.settings.device) if self.group.is_rank_zero else self.given
        finally:
            self.given.cpu()

    def unsharded(self) -> Trainer:
        """A trainer of the whole model as it is now, to look into a step. All processes call it where sharded."""
        if not self.is_sharded:
            return self
        moments = self.moments()
        with self.whole() as model:
            alone = Trainer(model, self.optim, replace(self.settings, shard=False))
        alone.restore(moments)
        return alone

    def before_step(self, step: int, progress: float) -> None:
        """Tell the model which update comes next: `step` counts from 0."""
        for model in {self.model, self.given}:
            model.before_step(step, progress)

    def moments(self) -> dict[str, Tensor]:
        """What the optimizer remembers, whole, by the names of parameters. All processes call it where sharded."""
        return {n: gathered(t) for n, t in self._own_moments().items()}

    def _own_moments(self) -> dict[str, Tensor]:
        if self.is_sharded:
            sharding.reshard(self.model)
        return checkpoint.optimizer_tensors(self.model, self.optimizer)

    def to_save(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and moments as a checkpoint holds them: whole, or where it is written in parts, this process's.

        All processes call it where the model is sharded.
        """
        if self.saves_in_parts:
            moments = self._own_moments()
            return self.model.state_dict(), moments
        moments = self.moments()
        with self.whole() as model:
            return model.state_dict(), moments

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Go on with what an optimizer has remembered; of other parameters from zero."""
        checkpoint.restore_optimizer(self.model, self.optimizer, moments)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass: bf16 where the settings say so."""
        is_bf16 = self.settings.precision == "bf16"
        return torch.autocast(torch.device(self.settings.device).type, torch.bfloat16, enabled=is_bf16)

    def counts(self, micro_batches: Sequence[Batch]) -> dict[str, Int[Tensor, ""]]:
        """How many samples of all micro-batches count for each objective, before the first of them is trained on."""
        counts: dict[str, Tensor] = {}
        for micro_batch in micro_batches:
            with self.autocast():
                own = self.model.count_samples(micro_batch.on(self.settings.device))
            counts = {name: counts.get(name, 0) + count for name, count in own.items()}
        return self.group.all_reduce(counts)

    def update(self, batch: Batch, lr: float) -> Update:
        """One step on a whole batch, micro-batch by micro-batch; in a group, on this process's share of it.

        An objective's loss is the mean over the samples of the whole batch that count for it. Where that number may
        differ between micro-batches, it is counted first; else each has its share of it. All processes have
        the same number of samples.
        """
        self.model.masker.check(self.model.encoder.layout(batch), batch.present)
        size = self.settings.micro_batch
        if self.settings.compile:
            size = even_size(len(batch), size)
        micro_batches = batch.split(size)
        is_uneven = len(micro_batches) > 1 and self.group.any(self.model.is_uneven(batch))
        counts = self.counts(micro_batches) if is_uneven else {}
        means: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, 1):
            with self.group.sync_gradients(self.forward, now=number == len(micro_batches)):
                with self.autocast():
                    losses = self.forward(micro_batch.on(self.settings.device))
                share = len(micro_batch) / len(batch)
                counted = self._counted({name: count for name, (_, count) in losses.items()}, share)
                own = {name: total / (counted | counts)[name].clamp_min(1) for name, (total, _) in losses.items()}
                # DDP averages over the processes, and the loss is a sum over them
                (self.group.size * torch.stack(list(own.values())).sum()).backward()
            means = {name: means.get(name, 0) + value.detach() for name, value in own.items()}
        means = self.group.all_reduce(means)
        if self.is_sharded:
            sharding.average_scalars(self.model)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = sharding.total_norm(gradients) if self.is_sharded else torch.nn.utils.get_total_norm(gradients)
        skipped = ~torch.stack([norm, *means.values()]).isfinite().all()
        if self.optim.clip is not None and self.is_sharded:
            sharding.clip(gradients, self.optim.clip, norm)
        elif self.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.optim.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Where found_inf is set the step is skipped on the device: the check needs no wait for it.
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        with self.autocast():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(means, ~skipped)  # averages skip it too
        return Update(means, norm, skipped)

    def _counted(self, counts: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """How many samples of the whole batch count, from those of a micro-batch that is this share of it."""
        if share == 1:
            return self.group.all_reduce(counts)
        return {name: count * (self.group.size / share) for name, count in counts.items()}  # all alike
