"""Metrics of the loop between two log lines, and its skipped (non-finite) steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.loader import Loader
from ..runs.folder import RunFolder
from .health import Health
from .trainer import Update

SLOWER = 0.05  # of the time, by which a rank waits longer for data than rank zero, to be named
_NAMED = 100  # skipped steps whose images are listed in nonfinite.json


class MetricsWindow:
    """The updates since the last log line, on the device until the line is made. `waited`: seconds for data by then.

    `state` is that of a checkpoint which was saved between two lines: the line has the losses of all its updates.
    """

    def __init__(self, waited: float, state: Sequence[Mapping[str, Any]] = ()):
        self.updates = [
            Update(
                {name: torch.tensor(x) for name, x in u["losses"].items()},
                *map(torch.tensor, (u["norm"], u["skipped"])),
            )
            for u in state
        ]
        self.num_before = len(self.updates)  # made by a process that has ended
        self.images = 0
        self.began, self.waited = time.monotonic(), waited

    def add(self, update: Update, images: int) -> None:
        if self.updates[: self.num_before] and update.norm.device != self.updates[0].norm.device:
            self.updates = [u.on(update.norm.device) for u in self.updates]
        self.updates.append(update)
        self.images += images

    @property
    def state(self) -> list[dict[str, Any]]:
        """What goes into a checkpoint, as JSON holds it; it waits for the device."""
        return [
            {
                "losses": {name: float(x) for name, x in u.losses.items()},
                "norm": float(u.norm),
                "skipped": bool(u.skipped),
            }
            for u in self.updates
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the body, which is not training, out of images per second."""
        left = time.monotonic()
        yield
        self.began += time.monotonic() - left

    def data_wait(self, waited: float) -> float:
        """The share of the time that was waited for data; `waited` are the loader's seconds by now."""
        return (waited - self.waited) / max(1e-9, time.monotonic() - self.began)

    def line(self, waited: float) -> dict[str, Any]:
        """Mean losses, last gradient norm (None if all steps were skipped), images per second, share of data wait."""
        rows = torch.stack([torch.stack([u.norm, *u.losses.values()]).float() for u in self.updates])
        skipped = torch.stack([u.skipped for u in self.updates])
        finite = rows[~skipped].cpu()
        means = finite[:, 1:].double().mean(dim=0).tolist()
        losses = dict(zip(self.updates[0].losses, means, strict=True)) if len(finite) else {}
        seconds = max(1e-9, time.monotonic() - self.began)
        return {
            "loss": sum(means) if len(finite) else None,
            "losses": losses,
            "grad_norm": float(finite[-1, 0]) if len(finite) else None,
            "images_per_second": self.images / seconds,
            "data_wait": (waited - self.waited) / seconds,
        }


def progress_text(line: Mapping[str, Any], total: int, per_epoch: int) -> str:
    """A log line as the progress line shows it; `total` steps, `per_epoch` of them an epoch."""
    loss, grad_norm = line["loss"], line["grad_norm"]
    return (
        f"step {line['step']}/{total}  epoch {line['epoch']:.1f}/{total / per_epoch:.3g}"
        f"  loss {'-' if loss is None else f'{loss:.4f}'}  lr {line['lr']:.1e}"
        f"  grad {'-' if grad_norm is None else f'{grad_norm:.2f}'}  {line['images_per_second']:.0f} images/s"
        f"  data wait {line['data_wait']:.0%}{_slowest(line)}  {line['memory_mb'] / 1024:.1f} GB"
        + (f"  {line['skipped']} skipped" if line["skipped"] else "")
    )


def _slowest(line: Mapping[str, Any]) -> str:
    """The rank that waits longest for data, where it waits longer than rank zero: the others wait for it."""
    waits: list[float] = line.get("data_waits", [])
    rank = max(range(len(waits)), key=waits.__getitem__, default=0)
    return f" (rank {rank} {waits[rank]:.0%})" if rank and waits[rank] > line["data_wait"] + SLOWER else ""


class SkippedSteps:
    """Reads what the updates gave, many at a time: counts skipped (non-finite) steps, lists their images in
    `nonfinite.json`, and keeps the `health` of the training, whose spikes go to `metrics.jsonl`.
    """

    def __init__(self, run: RunFolder, loader: Loader):
        self.run, self.loader = run, loader
        self.count, self.health = 0, Health()
        self.last_step, self.last_losses = 0, dict[str, float]()  # of the last skipped update
        self.unread: list[tuple[int, Update]] = []

    def add(self, update: Update, step: int) -> None:
        """Add an update, skipped or not, without waiting for the device."""
        self.unread.append((step, update))

    def read(self) -> int:
        """The number of skipped steps so far; waits for the device."""
        if not self.unread:
            return self.count
        updates = [update for *_, update in self.unread]
        rows = torch.stack([torch.stack([u.skipped.float(), u.norm, *u.losses.values()]) for u in updates])
        numbers = rows.tolist()
        skipped = []
        for (step, update), (flag, norm, *losses) in zip(self.unread, numbers, strict=True):
            if spike := self.health.add(step, losses, norm, bool(flag)):
                self.run.log_metrics({**spike, "epoch": step / self.loader.steps_per_epoch})
            if flag:
                skipped.append(step)
                self.last_step, self.last_losses = step, dict(zip(update.losses, losses, strict=True))
        self.unread.clear()
        if skipped:
            self.count += len(skipped)
            before = [u for u in self.run.read("nonfinite.json", []) if u["step"] < skipped[0]]
            named = [{"step": step, "images": self.images(step)} for step in skipped]
            self.run.write_optional_json("nonfinite.json", [*before, *named][-_NAMED:])
        return self.count

    def samples(self, step: int) -> Int[Tensor, " B"]:
        """The samples of the batch of a step, counted from 1, in all processes."""
        epoch, place = divmod(step - 1, self.loader.steps_per_epoch)
        return self.loader.order(epoch)[place * self.loader.batch_size :][: self.loader.batch_size]

    def images(self, step: int) -> list[str]:
        """The names of these samples, each once."""
        return [self.loader.source.name(i) for i in dict.fromkeys(self.samples(step).tolist())]
