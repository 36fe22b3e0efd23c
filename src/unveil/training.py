"""The loop: takes a recipe's encoder through its stages. There is one loop; it owns time and nothing else."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .chance import sample_keys
from .checkpoint import Checkpoint
from .data.loader import Loader
from .machine import memory_used
from .model import MaskedModel, mean_loss
from .optim import Optim, adamw, warmup_cosine
from .progress import Progress
from .recipe import Recipe
from .records import Batch
from .runs import RunFolder

MAX_SKIPPED = 20  # updates in a row that are not finite before the run stops
LINES = 1000  # of metrics that a run writes, about


@dataclass(frozen=True)
class Settings:
    """How a run uses its machine: nothing here changes what is learned beyond rounding."""

    device: str
    precision: str
    micro_batch: int
    compile: bool
    save_minutes: float
    signals_every: float  # epochs


class Diverged(ValueError):  # noqa: N818
    """Update after update was not finite."""


class Trainer:
    """One model and its optimizer: makes updates, and refuses those that are not finite."""

    def __init__(self, model: MaskedModel, optim: Optim, settings: Settings):
        self.model, self.optim, self.settings = model.to(settings.device).train(), optim, settings
        self.optimizer = adamw(self.model, optim)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.skipped_in_a_row = torch.zeros((), device=settings.device)
        self.skipped = torch.zeros((), device=settings.device)
        self.forward: Callable[[Batch], Any] = compiled(model) if settings.compile else model

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, and each objective's mean."""
        enabled = self.settings.precision == "bf16"
        with torch.autocast(torch.device(self.settings.device).type, torch.bfloat16, enabled=enabled):
            found = self.forward(batch)
        return mean_loss(found), {name: (total / count.clamp_min(1)).detach() for name, (total, count) in found.items()}

    def update(self, batch: Batch, lr: float) -> tuple[dict[str, Tensor], Tensor]:
        """One step on a whole batch, micro-batch by micro-batch. Returns the mean losses and the gradient's norm."""
        size = self.settings.micro_batch
        sums: dict[str, Tensor] = {}
        for start in range(0, len(batch), size):
            part = batch[start : start + size].on(self.settings.device)
            share = len(part) / len(batch)
            loss, parts = self.losses(part)
            (loss * share).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value * share
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.optim.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernel itself leaves weights and moments alone when told so: the check needs no wait for the device.
        refused = (~norm.isfinite()).float()
        self.optimizer.found_inf = refused  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += refused
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * refused
        self.model.after_step()
        return sums, norm


def compiled(model: MaskedModel) -> Callable[[Batch], Any]:
    """The model compiled as one graph."""
    return torch.compile(model, fullgraph=True, dynamic=False)


def seed_stage(seed: int, stage: int) -> None:
    """A stage's initialisation depends on the seed and the stage alone."""
    torch.manual_seed(int(sample_keys(seed, stage, [0])[0]) & (2**63 - 1))


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Watch = Callable[[MaskedModel, float, int], None]


class Loop:
    """A run in time: stages, steps, the learning rate, metrics, checkpoints, and where to go on from."""

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        loader: Loader,
        settings: Settings,
        seed: int,
        watch: Watch,
        metadata: Mapping[str, str],
    ):
        self.run, self.recipe, self.loader, self.settings = run, recipe, loader, settings
        self.seed, self.watch, self.metadata = seed, watch, metadata
        per_epoch = loader.steps_per_epoch
        ends, epochs = [], 0.0
        for stage in recipe.stages:
            epochs += stage.epochs
            ends.append(max(1, round(epochs * per_epoch)))
        self.ends, self.total = ends, ends[-1]
        self.warmup = recipe.optim.warmup_epochs * per_epoch
        self.log_every = max(1, min(self.total // LINES, per_epoch))
        self.signals_every = max(1, round(settings.signals_every * per_epoch))
        self.seconds = 0.0  # of training, over all sessions

    def train(self, resume: Checkpoint | None = None, start: Callable[[MaskedModel], None] | None = None) -> None:
        """Run to the end, from a checkpoint where there is one. `start` may load weights into the first model.

        Raises KeyboardInterrupt after a stop that was asked for, with everything saved; Diverged when updates stay
        non-finite.
        """
        step = resume.state["step"] if resume else 0
        self.seconds = resume.state["seconds"] if resume else 0.0
        carried = resume.optimizer if resume else {}
        with stop_on_signal() as stop:
            for index, end in enumerate(self.ends):
                if step >= end and index < len(self.ends) - 1:
                    continue
                seed_stage(self.seed, index)
                model = self.recipe.stages[index].build()
                if resume is not None:
                    model.load_state_dict(resume.model)
                elif index == 0 and start is not None:
                    start(model)
                trainer = Trainer(model, self.recipe.optim, self.settings)
                checkpoint.restore_optimizer(model, trainer.optimizer, carried)
                if resume is not None:
                    trainer.skipped += resume.state["skipped"]
                else:
                    self.watch(model, step / self.loader.steps_per_epoch, step)
                resume = None
                step = self._stage(trainer, step, end, stop)
                carried = checkpoint.optimizer_tensors(model, trainer.optimizer)
        self.run.write_facts(status="finished", seconds=self.seconds)

    def _stage(self, trainer: Trainer, step: int, end: int, stop: threading.Event) -> int:
        per_epoch = self.loader.steps_per_epoch
        progress = Progress(self.total, per_epoch)
        began, before = time.monotonic(), self.seconds
        saved = began
        window = _Window(self.loader.wait_seconds)
        for epoch in range(step // per_epoch, -(-end // per_epoch)):
            for batch in self.loader.batches(epoch, step - epoch * per_epoch):
                lr = self.recipe.optim.peak_lr * warmup_cosine(step, self.total, self.warmup)
                batch = replace(batch, progress=torch.tensor(step / self.total))
                window.add(*trainer.update(batch, lr), len(batch))
                step += 1
                self.seconds = before + time.monotonic() - began
                if step % self.log_every == 0 or step == end or stop.is_set():
                    line = window.line(self.loader.wait_seconds)
                    line |= {"kind": "step", "step": step, "epoch": step / per_epoch, "time": self.seconds, "lr": lr}
                    line |= {"memory_mb": memory_used(torch.device(self.settings.device))}
                    line |= {"skipped": int(trainer.skipped)}
                    self.run.log(line)
                    progress.show(line)
                    self._check(trainer, epoch, step)
                    window = _Window(self.loader.wait_seconds)
                if step % self.signals_every == 0 or step == self.total:
                    with window.paused():
                        self.watch(trainer.model, step / per_epoch, step)
                is_due = time.monotonic() - saved > 60 * self.settings.save_minutes
                if is_due or step == end or stop.is_set():
                    self._save(trainer, step, must=step == end or stop.is_set())
                    saved = time.monotonic()
                if stop.is_set() and step < self.total:
                    self.run.write_facts(status="stopped", seconds=self.seconds)
                    raise KeyboardInterrupt
                if step == end:
                    progress.close()
                    return step
        raise AssertionError("a stage ends at its last step")

    def _save(self, trainer: Trainer, step: int, must: bool) -> None:
        """Save; where that fails in the middle of a run, say so and train on with the checkpoint before."""
        try:
            checkpoint.save(
                self.run.path,
                step,
                trainer.model.state_dict(),
                checkpoint.optimizer_tensors(trainer.model, trainer.optimizer),
                {"seconds": self.seconds, "skipped": int(trainer.skipped), "epoch": step / self.loader.steps_per_epoch},
                self.metadata,
            )
        except OSError as error:
            if must:
                raise
            print(f"warning: {error}; training goes on, the checkpoint before is untouched", file=sys.stderr)

    def _check(self, trainer: Trainer, epoch: int, step: int) -> None:
        """Keep `broken.json` and, where updates are refused, name the images; stop when that does not end."""
        if self.loader.broken:
            _write(self.run.path / "broken.json", self.loader.broken)
        in_a_row = int(trainer.skipped_in_a_row)
        if in_a_row:
            place = (step - 1 - epoch * self.loader.steps_per_epoch) * self.loader.batch_size
            samples = self.loader.order(epoch)[place : place + self.loader.batch_size].tolist()
            names = [self.loader.source.name(i) for i in samples]
            _write(self.run.path / "nonfinite.json", {"step": step, "in_a_row": in_a_row, "images": names})
        if in_a_row >= MAX_SKIPPED:
            self.run.write_facts(status="failed", error=f"{in_a_row} updates in a row were not finite")
            raise Diverged(
                f"{in_a_row} updates in a row were not finite, so none was made; the weights are those of the last good"
                f" one. Try a lower --lr, --clip 1, or --precision float32; {self.run.path / 'nonfinite.json'} names"
                " the images of the last batch"
            )


class _Window:
    """What happened since the last line of metrics, kept on the device until it is read."""

    def __init__(self, waited: float):
        self.losses: dict[str, Tensor] = {}
        self.norm: Tensor | None = None
        self.steps = self.images = 0
        self.began, self.waited = time.monotonic(), waited

    def add(self, losses: dict[str, Tensor], norm: Tensor, images: int) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0) + value
        self.norm = norm
        self.steps += 1
        self.images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training does not count in the speed."""
        left = time.monotonic()
        yield
        self.began += time.monotonic() - left

    def line(self, waited: float) -> dict[str, Any]:
        losses = {name: float(value) / self.steps for name, value in self.losses.items()}
        seconds = max(1e-9, time.monotonic() - self.began)
        return {
            "loss": sum(losses.values()),
            "losses": losses,
            "grad_norm": float(self.norm) if self.norm is not None else 0.0,
            "images_per_second": self.images / seconds,
            "data_wait": (waited - self.waited) / seconds,
        }


def _write(path: Path, content: Any) -> None:
    try:
        checkpoint.write_json(path, content)
    except OSError as error:
        print(f"warning: {path} cannot be written ({error}): {json.dumps(content)[:200]}", file=sys.stderr)
