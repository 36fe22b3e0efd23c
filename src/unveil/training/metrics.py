"""What the loop remembers of its updates until it is told: the means of a line of metrics, the updates skipped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..data.loader import Loader
from ..runs.folder import RunFolder
from .trainer import Update

MAX_SKIPPED = 20  # updates in a row that are not finite before the run stops
_NAMED = 100  # skipped updates whose images are kept in nonfinite.json


class MetricsWindow:
    """What happened since the last line of metrics, kept on the device until it is read."""

    def __init__(self, waited: float):
        self.updates: list[Update] = []
        self.images = 0
        self.began, self.waited = time.monotonic(), waited

    def add(self, update: Update, images: int) -> None:
        """Note an update and its number of images."""
        self.updates.append(update)
        self.images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training does not count in the speed."""
        left = time.monotonic()
        yield
        self.began += time.monotonic() - left

    def line(self, waited: float) -> dict[str, Any]:
        """Means over the updates that were made, the last one's gradient, the speed; None where none was made."""
        rows = torch.stack([torch.stack([u.norm, *u.losses.values()]).float() for u in self.updates])
        skipped = torch.stack([u.skipped for u in self.updates])
        made = rows[~skipped].cpu()
        means = made[:, 1:].double().mean(dim=0).tolist()
        losses = dict(zip(self.updates[0].losses, means, strict=True)) if len(made) else {}
        seconds = max(1e-9, time.monotonic() - self.began)
        return {
            "loss": sum(means) if len(made) else None,
            "losses": losses,
            "grad_norm": float(made[-1, 0]) if len(made) else None,
            "images_per_second": self.images / seconds,
            "data_wait": (waited - self.waited) / seconds,
        }


def progress_text(line: Mapping[str, Any], total: int, per_epoch: int) -> str:
    """A line of metrics as it is shown while training goes on; `total` steps, `per_epoch` of them an epoch."""
    loss, grad_norm = line["loss"], line["grad_norm"]
    return (
        f"step {line['step']}/{total}  epoch {line['epoch']:.1f}/{total / per_epoch:.3g}"
        f"  loss {'-' if loss is None else f'{loss:.4f}'}  lr {line['lr']:.1e}"
        f"  grad {'-' if grad_norm is None else f'{grad_norm:.2f}'}  {line['images_per_second']:.0f} images/s"
        f"  data wait {line['data_wait']:.0%}  {line['memory_mb'] / 1024:.1f} GB"
        + (f"  {line['skipped']} skipped" if line["skipped"] else "")
    )


class SkippedSteps:
    """The updates that were not made: counted, their images named in `nonfinite.json`; too many in a row end a run."""

    def __init__(self, run: RunFolder, loader: Loader):
        self.run, self.loader = run, loader
        self.count = self.in_a_row = 0
        self.unread: list[tuple[int, int, Tensor]] = []

    def add(self, update: Update, epoch: int, step: int) -> None:
        """Note an update, skipped or not, for later."""
        self.unread.append((epoch, step, update.skipped))

    def read(self) -> int:
        """How many updates were skipped so far. This waits for the device."""
        if not self.unread:
            return self.count
        flags = torch.stack([skipped for *_, skipped in self.unread]).tolist()
        skipped = [place for *place, _ in [u for u, flag in zip(self.unread, flags, strict=True) if flag]]
        for flag in flags:
            self.in_a_row = self.in_a_row + 1 if flag else 0
        self.unread.clear()
        if skipped:
            self.count += len(skipped)
            before = [u for u in self.run.read("nonfinite.json", []) if u["step"] < skipped[0][1]]
            named = [{"step": step, "images": self._images(epoch, step)} for epoch, step in skipped]
            self.run.write_optional_json("nonfinite.json", [*before, *named][-_NAMED:])
        return self.count

    def too_many(self) -> bool:
        """Whether it is time to give up; looks at the device only so often."""
        if len(self.unread) >= MAX_SKIPPED or (self.in_a_row and self.unread):
            self.read()
        return self.in_a_row >= MAX_SKIPPED

    def report(self) -> str:
        """What happened and what to do."""
        return (
            f"{self.in_a_row} updates in a row were not finite, so none was made; the weights are those of the last"
            " good one. Try a lower --lr, --clip 1, or --precision float32;"
            f" {self.run.path / 'nonfinite.json'} names the images"
        )

    def _images(self, epoch: int, step: int) -> list[str]:
        place = (step - 1 - epoch * self.loader.steps_per_epoch) * self.loader.batch_size
        samples = self.loader.order(epoch)[place : place + self.loader.batch_size].tolist()
        return [self.loader.source.name(i) for i in samples]
