"""Metrics of the loop between two log lines, and its skipped (non-finite) steps."""

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
_NAMED = 100  # skipped steps whose images are listed in nonfinite.json


class MetricsWindow:
    """The updates since the last log line, on the device until the line is made. `waited`: seconds for data by then."""

    def __init__(self, waited: float):
        self.updates: list[Update] = []
        self.images = 0
        self.began, self.waited = time.monotonic(), waited

    def add(self, update: Update, images: int) -> None:
        self.updates.append(update)
        self.images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the body, which is not training, out of images per second."""
        left = time.monotonic()
        yield
        self.began += time.monotonic() - left

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
        f"  data wait {line['data_wait']:.0%}  {line['memory_mb'] / 1024:.1f} GB"
        + (f"  {line['skipped']} skipped" if line["skipped"] else "")
    )


class SkippedSteps:
    """Counts skipped (non-finite) steps and lists their images in `nonfinite.json`; too many in a row end a run."""

    def __init__(self, run: RunFolder, loader: Loader):
        self.run, self.loader = run, loader
        self.count = self.in_a_row = 0
        self.unread: list[tuple[int, int, Tensor]] = []

    def add(self, update: Update, epoch: int, step: int) -> None:
        """Add an update, skipped or not, without waiting for the device."""
        self.unread.append((epoch, step, update.skipped))

    def read(self) -> int:
        """The number of skipped steps so far; waits for the device."""
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
        """Whether MAX_SKIPPED steps in a row were skipped; waits for the device only every so many steps."""
        if len(self.unread) >= MAX_SKIPPED or (self.in_a_row and self.unread):
            self.read()
        return self.in_a_row >= MAX_SKIPPED

    def report(self) -> str:
        """The error message: what happened and what to try."""
        return (
            f"{self.in_a_row} updates in a row were not finite and were skipped; the weights are those of the last"
            " finite one. Try a lower --lr, --clip 1, or --precision float32;"
            f" {self.run.path / 'nonfinite.json'} names the images"
        )

    def _images(self, epoch: int, step: int) -> list[str]:
        place = (step - 1 - epoch * self.loader.steps_per_epoch) * self.loader.batch_size
        samples = self.loader.order(epoch)[place : place + self.loader.batch_size].tolist()
        return [self.loader.source.name(i) for i in dict.fromkeys(samples)]
