"""What training does when it cannot go on: back to the last good checkpoint with half the rate, twice, then it stops.

Good checkpoints are those of certain steps at which nothing was wrong. `run.json` lists each return before anything is
removed, so a process that dies in between goes on as if it had not.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ..data.loader import Loader
from ..data.upload import uploaded
from ..modeling.rng import step_key
from ..modeling.types import Batch
from ..runs import checkpoint
from ..runs.checkpoint_state import REPLAY_FOLDER, all_weights, folders, read_state, step_of
from ..runs.console import Diverged, log, quoted
from ..runs.dtensors import local_part
from ..runs.folder import RunFolder
from .diagnosis import Finding, examine, is_broken, named
from .distributed import Group
from .health import Health, Trouble
from .metrics import SkippedSteps
from .trainer import Settings, Trainer

HALVINGS = 2  # of the learning rate, before a run stops
NUM_GOOD = 2  # checkpoints to go back to: the newest may be of a step just before the trouble
_GOOD_EVERY = (20, 1000)  # steps, the fewest and the most; a twentieth of the run in between
_MOST_NAMED = 100  # images of a batch in `run.json`

At = Callable[[int, int], tuple[float, float]]  # (stage, step) -> learning rate, share of training done


class WentBack(Exception):  # noqa: N818  it is no error
    """Training is to be continued from an earlier checkpoint, which is now the newest of the run."""


class Ladder:
    """Watches a training, and goes back or stops where it cannot go on. Steps are updates made, so counted from 1."""

    def __init__(
        self,
        run: RunFolder,
        loader: Loader,
        settings: Settings,
        group: Group,
        seed: int,
        metadata: Mapping[str, str],
        total: int,
    ):
        self.run, self.loader, self.settings, self.group = run, loader, settings, group
        self.seed, self.metadata = seed, metadata
        self.skipped = SkippedSteps(run, loader)
        self.returns = stored_returns(run.metadata)
        self.good = list[int]()  # the newest steps that training may go back to
        fewest, most = _GOOD_EVERY
        self.good_every = min(max(total // 20, fewest), most)

    def restore(self, state: Mapping[str, Any]) -> float:
        """Go on with the state of a checkpoint, empty at the start; the seconds that were lost after it."""
        self.skipped.count, self.good = state.get("skipped", 0), list(state.get("good", ()))
        self.skipped.health = Health(state.get("health"))
        return float(sum(entry["seconds"] for entry in self.returns[state.get("returns", 0) :]))

    def state(self, good_step: int | None, tensors: Iterable[Tensor], in_parts: bool = False) -> dict[str, Any]:
        """What a checkpoint of these tensors stores; one of a `good_step` at which nothing is wrong stays for a while.

        It waits for the device. All processes call it where each has its part of the tensors (`in_parts`).
        """
        count, health = self.skipped.read(), self.skipped.health
        if good_step is not None and health.is_calm and not self._is_broken(tensors, in_parts):
            self.good = [*self.good, good_step][-NUM_GOOD:]
        return {"skipped": count, "returns": len(self.returns), "good": self.good, "health": health.state}

    def _is_broken(self, tensors: Iterable[Tensor], in_parts: bool) -> bool:
        found = any(is_broken(local_part(tensor)) for tensor in tensors)
        return self.group.any(found) if in_parts else found

    def rate_factor(self, step: int) -> float:
        """The factor of the learning rate after a step: a half for each return to it or to one before."""
        return float(0.5 ** sum(entry["to"] <= step for entry in self.returns))

    def check(self, trainer: Trainer, stage: int, step: int, batch: Batch, seconds: float, at: At) -> None:
        """Raise WentBack or Diverged where training cannot go on; rank zero decides for all. It waits for the device.

        `batch` is that of the step, and `seconds` the time of training.
        """
        self.skipped.read()
        trouble = self.skipped.health.trouble
        if self.group.agree(int(trouble is not None)):
            assert trouble, "all processes have the same losses"
            self._go_back(trainer, stage, step, batch, seconds, at, trouble)
        if self.skipped.health.in_a_row == 1 and self.skipped.last_step == step:
            more = {"why": "the update was not finite", "losses": self.skipped.last_losses}
            self._record(trainer.unsharded(), stage, step, at, more)  # the weights are still those before it

    def _go_back(
        self, trainer: Trainer, stage: int, step: int, batch: Batch, seconds: float, at: At, trouble: Trouble
    ) -> NoReturn:
        """Name what is wrong, make the last good checkpoint the newest, and raise."""
        self.group.tick("going back")
        trainer = trainer.unsharded()
        bad = step if trouble.is_finite else self.skipped.last_step
        if bad != step:
            batch = self._batch(trainer, stage, bad, at)
        finding, is_finite_in_float32 = self._examine(trainer, bad, batch)
        is_last, images = len(self.returns) >= HALVINGS, self.skipped.images(bad)
        where = f"the first number that is not finite arose {finding.where}, in {self.settings.precision}"
        facts = [f"step {step}: {trouble.why}", *([] if trouble.is_finite else [where])]
        told = "; ".join([*facts, f"images of the batch: {named([quoted(image) for image in images])}"])
        to = 0
        if self.group.is_rank_zero:
            self.run.check_place()
            losses = finding.losses if trouble.is_finite else self.skipped.last_losses
            more = {"where": finding.where, "why": trouble.why, "losses": losses}
            self._record(trainer, stage, bad, at, more)
            to = last_good(self.run.path, None if is_last else self.good, trouble.began)
            entry = {"step": step, "to": to, "why": trouble.why, "where": finding.where, "images": images[:_MOST_NAMED]}
            entry |= {"precision": self.settings.precision, "seconds": seconds - _seconds_at(self.run.path, to)}
            returns = self.returns if is_last else [*self.returns, entry]
            self.run.update_metadata(returns=returns, last_checkpoint=to or None)
            _remove_later(self.run.path, to)
        to = self.group.agree(to)  # the others wait until all is written
        if is_last:
            remedy = "images" if finding.is_of_input else "float32" if is_finite_in_float32 else "rate"
            weights = f"the newest weights are those of step {to}" if to else "there are no weights from before it"
            raise Diverged(f"training diverged at {told}; the rate was halved {HALVINGS} times; {weights}", remedy)
        log(f"warning: {told}; going back to step {to} with half the rate ({len(self.returns) + 1} of {HALVINGS})")
        raise WentBack

    def _examine(self, trainer: Trainer, step: int, batch: Batch) -> tuple[Finding, bool]:
        """What a repetition of a step finds in any process, and whether float32 finds nothing where bf16 did."""
        samples = self.loader.own_part(self.skipped.samples(step)).tolist()
        images = [self.loader.source.name(i) for i in samples]
        finding = examine(trainer, batch, images)
        found = self.group.gather({} if finding.is_finite else {f"{self.group.rank:06}": finding.where})
        sums = self.group.all_reduce({name: torch.tensor(loss) for name, loss in finding.losses.items()})
        means = {name: float(value) / self.group.size for name, value in sums.items()}
        finding = Finding(found[min(found)] if found else finding.where, means)
        if self.settings.precision != "bf16" or finding.is_finite:
            return finding, False
        return finding, not self.group.any(not examine(trainer, batch, images, "float32").is_finite)

    def _batch(self, trainer: Trainer, stage: int, step: int, at: At) -> Batch:
        """This process's part of the batch of an earlier step; the model is told that step."""
        epoch, place = divmod(step - 1, self.loader.steps_per_epoch)
        share = at(stage, step - 1)[1]
        trainer.model.before_step(step - 1, share)
        batches = cast("Generator[Batch]", self.loader.batches(epoch, place))
        with closing(batches):
            batch = next(iter(uploaded(batches, torch.device(self.settings.device))))
        return replace(batch, progress=torch.tensor(share), step_key=step_key(self.seed, step - 1))

    def _record(self, trainer: Trainer, stage: int, step: int, at: At, more: Mapping[str, Any]) -> None:
        """Keep a step for `unveil replay`, on rank zero: its samples, its losses, and the weights before it."""
        if not self.group.is_rank_zero:
            return
        rate, share = at(stage, step - 1)
        losses = more.get("losses", {})
        state: dict[str, Any] = {
            **{"stage": stage, "epoch": step / self.loader.steps_per_epoch, "progress": share, "lr": rate},
            **{"precision": self.settings.precision, "samples": self.skipped.samples(step).tolist()},
            **{"images": self.skipped.images(step), **more},
            "losses": {name: loss if math.isfinite(loss) else str(loss) for name, loss in losses.items()},
        }
        moments = checkpoint.optimizer_tensors(trainer.model, trainer.optimizer)
        with self.run.tolerate_io_errors(REPLAY_FOLDER):
            checkpoint.save_replay(self.run.path, step, trainer.model.state_dict(), moments, state, self.metadata)


def stored_returns(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The returns in the content of a `run.json`. Raises ValueError where they are damaged."""
    returns: list[dict[str, Any]] = metadata.get("returns", [])
    numbers = ("step", "to", "seconds")
    if not all(isinstance(e, dict) and all(isinstance(e.get(n), int | float) for n in numbers) for e in returns):
        raise ValueError("run.json is damaged (each of its returns needs step, to and seconds); give another --out")
    return returns


def finish_return(run: RunFolder) -> None:
    """Remove what the last return has left, if its process died meanwhile."""
    if returns := stored_returns(run.metadata):
        _remove_later(run.path, returns[-1]["to"], len(returns))


def log_returns(run: RunFolder) -> None:
    """Write a line of `metrics.jsonl` for each return in `run.json` that has none."""
    returns = stored_returns(run.metadata)
    logged = run.count_metrics("return") if returns else 0
    for entry in returns[logged:]:
        run.log_metrics({"kind": "return", **entry, "at": entry["step"], "step": entry["to"]})


def last_good(run: Path, good: Collection[int] | None, before: int) -> int:
    """The newest of the good steps, or of all, before a step with a checkpoint; 0, the start, where there is none."""
    there = (step_of(folder) for folder in folders(run))
    return max((step for step in there if step < before and (good is None or step in good)), default=0)


def _seconds_at(run: Path, step: int) -> float:
    """The seconds of training by a checkpoint; 0 for the start."""
    return next((float(read_state(folder)["seconds"]) for folder in folders(run) if step_of(folder) == step), 0.0)


def _remove_later(run: Path, step: int, returns: int | None = None) -> None:
    """Remove all weights after a step, the newest first; with `returns`, only those of before so many of them."""
    for folder in reversed(all_weights(run)):
        if step_of(folder) > step and (returns is None or _returns_of(folder) < returns):
            shutil.rmtree(folder, ignore_errors=True)


def _returns_of(folder: Path) -> int:
    """After how many returns weights were saved. What cannot be read is not used, so it may stay."""
    try:
        return int(read_state(folder).get("returns", 0))
    except ValueError:
        return HALVINGS
