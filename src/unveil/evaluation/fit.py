"""One training loop for fine-tuning, dense heads and probes, which resumes to the bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..runs.atomic import make_folder
from ..runs.checkpoint import optimizer_tensors, restore_optimizer, write_weights
from ..runs.launcher import is_rank_zero
from ..runs.threads import AdaptiveThreads
from .processes import add_up

SAVE_EVERY = 30.0  # seconds between two checkpoints, where epochs are shorter

T = TypeVar("T")


def fit(
    model: nn.Module,
    losses: Callable[[T], Iterable[Float[Tensor, ""]]],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Generator[T]],
    rate: Callable[[float], float],
    *,
    epochs: int,
    steps_per_epoch: int,
    name: str,
    advice: str | None,
    batch_size: int,
    ema: float = 0.0,
    checkpoint: FitCheckpoint | None = None,
    threads: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    is_shared: bool = False,
) -> None:
    """Train `model` on `batches(epoch)` for some epochs.

    `losses(batch)` yields the loss of each micro-batch, all divided by the size of the whole batch; gradients add up.
    `rate` is the learning rate at a point of training counted in epochs; a group of the optimizer takes `scale` times
    that. With `ema` the weights end as their moving average of this decay. A `checkpoint` resumes the training after
    its last stored epoch, provided that `batches` and `losses` depend on nothing but the epoch and the weights.
    With `is_shared`, `losses` yields those of this process alone, of several that train together.
    On a CPU it computes with `threads` at most, where their number follows the load. `progress` is called with
    (`name`, images done, images in all).

    Raises ValueError with `name` and `advice` after an epoch whose loss is not finite; an `advice` of None accepts it.
    """
    checkpoint = checkpoint or FitCheckpoint(None)
    average = [p.detach().clone() for p in model.parameters()] if ema else []
    start, steps = checkpoint.load(model, optimizer, average)
    adaptive = AdaptiveThreads(threads)
    for epoch in range(start, epochs):
        total: Tensor | float = 0.0
        with closing(batches(epoch)) as stream:  # its threads end here
            for step, batch in enumerate(stream):
                with adaptive.step():
                    total += update(optimizer, losses(batch), rate(epoch + step / steps_per_epoch), is_shared)
                steps += 1
                if average:
                    follow(average, model, ema, steps)
                progress(name, steps * batch_size, epochs * steps_per_epoch * batch_size)
        if advice is not None and not math.isfinite(total):
            raise ValueError(f"{name} diverged in epoch {epoch + 1} (its loss is not finite); {advice}")
        checkpoint.save(model, optimizer, average, epoch + 1, steps, is_last=epoch + 1 == epochs)
    for parameter, mean in zip(model.parameters(), average, strict=False):
        parameter.data.copy_(mean)


def update(
    optimizer: torch.optim.Optimizer, losses: Iterable[Float[Tensor, ""]], lr: float, is_shared: bool = False
) -> Float[Tensor, ""]:
    """One step on the sum of the losses, at `lr` times the scale of each group; returns the sum, on the device.

    Where it `is_shared`, the losses are those of this process alone, and the step is that of all processes together.
    """
    total: Tensor | None = None
    for loss in losses:
        loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    if is_shared:
        total = add_up((p for group in optimizer.param_groups for p in group["params"]), total)
    assert total is not None
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def follow(average: list[Tensor], model: nn.Module, decay: float, steps: int) -> None:
    """Move the averaged weights towards those of a model after so many updates.

    The decay is smaller at first, so that a short training is not an average of its initial weights.
    """
    torch._foreach_lerp_(average, list(model.parameters()), 1 - min(decay, (1 + steps) / (10 + steps)))


@dataclass
class FitCheckpoint:
    """The file of an interrupted training, written whole or not at all; without a file nothing is stored.

    Views and random numbers are functions of seed, epoch and sample, so weights, moments and averages are the state.
    `unreadable` names the images that could not be read, which is stored with them. A file that cannot be written or
    read costs what it would have saved, and a warning passed to `note`.
    """

    file: Path | None
    note: Callable[[str], None] = print
    unreadable: dict[str, str] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> tuple[int, int]:
        """Restore the training from the file and return its whole epochs and updates; (0, 0) where there is none."""
        if self.file is None or not self.file.exists():
            return 0, 0
        try:
            with safe_open(self.file, "pt") as content:
                state = json.loads(content.metadata()["done"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  no mapping
            model.load_state_dict(_named(tensors, "model"))
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            self.note(f"note: {self.file} is damaged ({error}); the training starts again from its first epoch")
            return 0, 0
        restore_optimizer(model, optimizer, _named(tensors, "moments"))
        for mean, value in zip(average, _named(tensors, "average").values(), strict=True):
            mean.copy_(value)
        self.unreadable.update(state["unreadable"])
        return state["epochs"], state["steps"]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: list[Tensor],
        epochs: int,
        steps: int,
        is_last: bool,
    ) -> None:
        """Store the training after an epoch, unless the last file is only seconds old; moments not after the last."""
        if self.file is None or (time.monotonic() - self.saved < SAVE_EVERY and not is_last) or not is_rank_zero():
            return
        moments = {} if is_last else optimizer_tensors(model, optimizer)
        tensors = {f"model:{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"moments:{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"average:{index:05}": tensor for index, tensor in enumerate(average)}
        state = {"epochs": epochs, "steps": steps, "unreadable": self.unreadable}
        try:
            make_folder(self.file.parent)
            write_weights(self.file, tensors, {"done": json.dumps(state)})
        except OSError as error:
            self.note(f"warning: {error}; the training continues without a checkpoint")
        self.saved = time.monotonic()


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}:"): tensors[name] for name in sorted(tensors) if name.startswith(f"{kind}:")}
