"""A training that was stopped, however it was: it goes on after its last whole epoch, to the bit on a processor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..runs.checkpoint import optimizer_tensors, restore_optimizer, write_weights

SECONDS = 30.0  # from one file to the next, where epochs are shorter


@dataclass(frozen=True)
class Done:
    """How far a training has come: whole epochs, updates, and which images could not be read and why."""

    epochs: int = 0
    steps: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)


class Unfinished:
    """Where a training stands, in a file that is whole or not there; without a file nothing is kept.

    Views and chance are functions of seed, epoch and image, so weights and moments say all. `averages` are tensors
    that follow the weights. What cannot be written or read costs only what it would have saved, which `note` hears.
    """

    def __init__(
        self,
        file: Path | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Sequence[Tensor] = (),
        note: Callable[[str], None] = print,
    ):
        self.file, self.model, self.optimizer, self.averages, self.note = file, model, optimizer, averages, note
        self.saved = time.monotonic()

    def resume(self) -> Done:
        """Put the training where its file says; where there is none, it begins."""
        if self.file is None or not self.file.exists():
            return Done()
        try:
            with safe_open(self.file, "pt") as content:
                told = json.loads(content.metadata()["done"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  it is no mapping
            self.model.load_state_dict(_part(tensors, "model"))
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            self.note(f"note: {self.file} is damaged ({error}); the training begins anew")
            return Done()
        restore_optimizer(self.model, self.optimizer, _part(tensors, "moments"))
        for average, value in zip(self.averages, _part(tensors, "average").values(), strict=True):
            average.copy_(value)
        return Done(**told)

    def save(self, done: Done, is_last: bool) -> None:
        """Keep where the training stands after an epoch, unless the last file is only seconds old.

        After the last epoch the moments have done their work.
        """
        if self.file is None or (time.monotonic() - self.saved < SECONDS and not is_last):
            return
        moments = {} if is_last else optimizer_tensors(self.model, self.optimizer)
        tensors = {f"model:{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"moments:{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"average:{place:05}": tensor for place, tensor in enumerate(self.averages)}
        told = {"epochs": done.epochs, "steps": done.steps, "unreadable": dict(done.unreadable)}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_weights(self.file, tensors, {"done": json.dumps(told)})
        except OSError as error:
            self.note(f"warning: {error}; the training goes on, and would begin anew if it were stopped")
        self.saved = time.monotonic()


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}:"): tensors[name] for name in sorted(tensors) if name.startswith(f"{kind}:")}
