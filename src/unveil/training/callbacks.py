"""Callbacks: objects that are told how a training goes. Trackers (`training/trackers.py`) are built on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..modeling.masked_model import MaskedModel
from ..runs.console import log


@dataclass(frozen=True)
class TrainingEvent:
    """What a callback is told.

    run: the run folder
    step, epoch, seconds: how far training is; seconds over all sessions, NaN where they are not known
    steps: the number of updates that are planned
    metrics: a line of `metrics.jsonl`: of `on_step` loss, losses, lr, grad_norm, images_per_second, ...; of
        `on_validation` heldout_loss, rankme, feature_std, ...
    options: all options of the recipe, as they were resolved
    model: the model with whole weights, in `on_validation`: to be looked at, not changed
    checkpoint: the folder that was just written, in `on_checkpoint`
    status: running; in `on_end` finished, stopped, failed, or returned: it goes on from an earlier checkpoint
    """

    run: Path
    step: int = 0
    steps: int = 0
    epoch: float = math.nan
    seconds: float = math.nan
    metrics: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    model: MaskedModel | None = field(default=None, repr=False)
    checkpoint: Path | None = None
    status: str = "running"


class Callback:
    """What `unveil.pretrain(callbacks=[...])` calls; each method may be left out, and any object with some will do.

    With several processes rank zero alone calls. A callback that raises is warned of once and left alone from then on:
    it ends no run.

    >>> import unveil
    >>> class Losses(unveil.Callback):
    ...     def on_step(self, event):
    ...         print(event.step, "of", event.steps, sorted(event.metrics)[:3])
    >>> options = dict(size="nano", image_size=16, patch=4, epochs=0.5, batch_size=8, device="cpu")
    >>> run = unveil.pretrain("mae", data="images", out="runs/losses", callbacks=[Losses()], **options)
    1 of 2 ['data_wait', 'epoch', 'grad_norm']
    2 of 2 ['data_wait', 'epoch', 'grad_norm']
    optimisation: early. ...
    """

    def on_start(self, event: TrainingEvent) -> None:
        """Before the first update, and again where a run is continued or goes back."""

    def on_step(self, event: TrainingEvent) -> None:
        """At each logged update, about a thousand times in a run."""

    def on_validation(self, event: TrainingEvent) -> None:
        """After each validation, with the model."""

    def on_event(self, event: TrainingEvent) -> None:
        """At what else is logged: a spike of the loss, a return to an earlier checkpoint (`metrics["kind"]`)."""

    def on_checkpoint(self, event: TrainingEvent) -> None:
        """After a checkpoint was written; `event.checkpoint` is its folder."""

    def on_end(self, event: TrainingEvent) -> None:
        """Once training ends, however it does."""


class Callbacks:
    """The callbacks of a run, told one after the other; the listener of a run folder."""

    def __init__(self, each: Sequence[object], run: Path, options: Mapping[str, Any]):
        self.each, self.now = list(each), TrainingEvent(run, options=dict(options))
        self._validation: TrainingEvent | None = None

    def start(self, step: int, steps: int) -> None:
        """Training begins after a step, of so many that are planned."""
        self.now = replace(self.now, step=step, steps=steps)
        self._tell("on_start", self.now)

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of metrics was logged; one of a validation waits for the model (`validated`)."""
        if not self.each:
            return
        step, epoch, seconds = line["step"], line.get("epoch", math.nan), line.get("time", self.now.seconds)
        self.now = replace(self.now, step=int(step), epoch=float(epoch), seconds=float(seconds))
        event = replace(self.now, metrics={name: value for name, value in line.items() if name != "step"})
        if line.get("kind") == "signals":
            self._validation = event
        else:
            self._tell("on_step" if line.get("kind") == "step" else "on_event", event)

    def validated(self, model: MaskedModel) -> None:
        """A validation is over: its line, which has waited, is told with the model."""
        event, self._validation = self._validation, None
        if event is not None:
            self._tell("on_validation", replace(event, model=model))

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint of this step was written to a folder."""
        self._tell("on_checkpoint", replace(self.now, step=step, checkpoint=folder))

    def end(self, status: str) -> None:
        """Training ends with a status, as `TrainingEvent` lists them."""
        self._tell("on_end", replace(self.now, status=status))

    def _tell(self, name: str, event: TrainingEvent) -> None:
        for callback in list(self.each):
            method = getattr(callback, name, None)
            if method is None:
                continue
            try:
                method(event)
            except Exception as error:  # whatever a user's code or a tracker's server raises: no run ends by it
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                who = type(callback).__name__
                log(f"warning: {who}.{name} failed at step {event.step} ({reason}); it is not called any more")
                self.each.remove(callback)
