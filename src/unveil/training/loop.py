"""The loop: takes a recipe's encoder through its stages. There is one loop; it owns time and nothing else."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from ..data.loader import Loader
from ..data.upload import uploaded
from ..modeling.masked_model import MaskedModel
from ..modeling.rng import seed_stage, step_key
from ..modeling.teachers import frozen_teachers, reset_emas
from ..modeling.types import Batch
from ..recipes.recipe import Recipe
from ..runs import checkpoint
from ..runs.checkpoint import Checkpoint
from ..runs.console import Progress, Stopped, log
from ..runs.folder import RunFolder
from ..runs.hardware import memory_used
from ..runs.threads import AdaptiveThreads
from .distributed import SINGLE_PROCESS, Group
from .health import MAX_SKIPPED
from .ladder import NUM_GOOD, Ladder
from .metrics import MetricsWindow, progress_text
from .pace import Pace, Plan, Schedule
from .trainer import Settings, Trainer

LINES = 1000  # of metrics that a run writes, about
# Shares of a run whose weights stay, for `evaluate --over-training`: forecasts are made from before the rate falls.
SAVED = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
FEWEST_STEPS, MOST_SAVED = 100, 160 << 20  # of a run for that, and bytes of all these weights
LOG_EVERY = 10  # steps at least where a device works beside the host, which waits for it to read a loss

Validate = Callable[[MaskedModel, float, int], None]  # model, epoch, step


class Loop:
    """The training loop of a run: stages, steps, learning rate, metrics, validation, checkpoints and resuming."""

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        loader: Loader,
        settings: Settings,
        seed: int,
        validate: Validate,
        metadata: Mapping[str, str],
        group: Group = SINGLE_PROCESS,
        plan: Plan | None = None,
    ):
        self.run, self.recipe, self.loader, self.settings = run, recipe, loader, settings
        self.seed, self.validate, self.metadata, self.group = seed, validate, metadata, group
        per_epoch = loader.steps_per_epoch
        steps = [round(epochs * per_epoch) for epochs in accumulate(stage.epochs for stage in recipe.stages)]
        # A stage has one step at least.
        bounds = list(accumulate(steps, lambda start, end: max(start + 1, end), initial=0))
        self.starts, self.schedule, total = bounds[:-1], Schedule(bounds[1:]), bounds[-1]
        least = 1 if torch.device(settings.device).type == "cpu" else LOG_EVERY
        self.log_every = max(1, min(max(total // LINES, least), per_epoch))
        self.planned_val_every = self.val_every = max(1, round(settings.val_every * per_epoch))
        self.save_at = _steps_to_save(settings.save_every, total, per_epoch)
        self.ladder = Ladder(run, loader, settings, group, seed, metadata, total)
        self.threads = AdaptiveThreads(0 if settings.compile else settings.adaptive_threads)
        self.pace = Pace(plan, settings.compile)
        self.seconds = 0.0  # of training, over all sessions
        self.disk_rule = ""
        self.window = MetricsWindow(0.0)
        self.before_line: list[dict[str, Any]] = []  # updates of a checkpoint since its last log line

    def train(
        self,
        stop: threading.Event,
        start: Callable[[MaskedModel], None],
        resume: Checkpoint | None = None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> MaskedModel:
        """Train to the end, from a checkpoint where there is one, and return the last stage's model.

        `start` may load weights into the first model of a run without a checkpoint, whose optimiser begins with the
        `moments` that are given. Raises KeyboardInterrupt after `stop` was set, with everything saved; WentBack where
        training is to be continued from an earlier checkpoint, and Diverged where that was done too often.
        """
        step = first = 0
        if resume is not None:
            step, first = resume.state["step"], resume.state["stage"]
            self.seconds = resume.state["seconds"]
            self.schedule.restore(resume.state.get("schedule", {}))
            self.before_line = resume.state.get("window", [])
        self.seconds += self.ladder.restore(resume.state if resume else {})
        before: Trainer | None = None
        for index in range(first, len(self.starts)):
            if index > first:
                self.ladder.skipped.health.start_stage()
            seed_stage(self.seed, index)
            model = self.recipe.stages[index].build()
            self._check_teachers(model, index)
            if resume is not None:
                _load(model, resume)
            elif step == 0:
                start(model)
                reset_emas(model)  # to the weights that `start` has loaded
            trainer = Trainer(model, self.recipe.optim, self.settings, self.group)
            if resume is not None:
                trainer.restore(resume.optimizer)
            elif before is not None:
                trainer.adopt(before)
            elif moments:
                trainer.restore(moments)
            self._log_disk_rule(trainer)
            if step == 0:
                with trainer.whole() as whole:
                    self.validate(whole, 0.0, 0)
            step = self._stage(trainer, index, step, stop)
            with trainer.whole() as model:  # the next stage is built on its encoder
                before, resume = trainer, None
        assert before
        return model

    def _log_disk_rule(self, trainer: Trainer) -> None:
        """Say how much the run may take on the disk, for each stage whose model takes another size."""
        kept = len(self.save_at) if self._keeps_weights(trainer.model) else 0
        rule = checkpoint.disk_rule(trainer.model, trainer.optimizer, checkpoint.NUM_CHECKPOINTS + NUM_GOOD, kept)
        if rule != self.disk_rule:
            log(f"  {rule}")
        self.disk_rule = rule

    def _keeps_weights(self, model: MaskedModel) -> bool:
        """Whether weights are saved for good: where it was asked for, or where they are small."""
        size = sum(w.nbytes for w in model.state_dict().values())
        return self.settings.save_every is not None or len(SAVED) * size <= MOST_SAVED

    def _check_teachers(self, model: MaskedModel, index: int) -> None:
        """Note the checksums of frozen teachers in `run.json`. Raises ValueError where one has other weights by now."""
        stored = self.run.metadata.get("teachers", {})
        now = {f"{name} of stage {index + 1}": t.checksum() for name, t in frozen_teachers(model).items()}
        for name, checksum in now.items():
            if stored.get(name, checksum) != checksum:
                raise ValueError(
                    f"the teacher {name} has other weights than when {self.run.path} began ({stored[name]} then,"
                    f" {checksum} now); give the same weights, another --out, or --overwrite"
                )
        if now.keys() - stored.keys():
            self.run.update_metadata(teachers=stored | now)

    def _stage(self, trainer: Trainer, index: int, step: int, stop: threading.Event) -> int:
        per_epoch, schedule = self.loader.steps_per_epoch, self.schedule
        progress = Progress()
        saved = time.monotonic()
        began = saved - self.seconds  # as if the stages and sessions before had been just now
        window = self.window = MetricsWindow(self.loader.wait_seconds, self.before_line)
        self.before_line = []
        self.pace.start_stage(self.loader.wait_seconds)
        for batch in self._batches(step, index):
            lr, share = self._at(index, step)
            self.group.tick(f"the update of step {step + 1}")
            trainer.before_step(step, share)
            batch = replace(batch, progress=torch.tensor(share), step_key=step_key(self.seed, step))
            with self.threads.step():
                update = trainer.update(batch, lr)
            step += 1
            window.add(update, self.loader.batch_size)
            self.ladder.skipped.add(update, step)
            self.seconds = time.monotonic() - began
            stops = self._stopping(stop)  # read once: a later signal stops after the next step
            if step % self.log_every == 0 or step == schedule.ends[index] or stops:
                self._log(window, progress, step, lr)
                self.seconds = time.monotonic() - began
                self.pace.add(len(window.updates) - window.num_before, self.loader.wait_seconds)
                window = self.window = MetricsWindow(self.loader.wait_seconds)
                self._keep_time(index, step, progress)
            is_last = step == schedule.ends[index] or bool(stops)
            is_due = is_last or step % self.log_every == 0 or step % MAX_SKIPPED == 0
            if is_due and (not stops or step == schedule.total):
                self.ladder.check(trainer, index, step, batch, self.seconds, self._at)
            if step % self.val_every == 0 or step == schedule.total:
                with window.paused(), self.pace.paused():
                    self.group.tick("validation")
                    self.run.check_place()
                    with trainer.whole() as whole:
                        self.validate(whole, step / per_epoch, step)
            with self.pace.paused():
                self.group.tick("saving")
                if step in self.save_at:
                    self._save_weights(trainer, index, step)
                is_good = step % self.ladder.good_every == 0 or step == schedule.ends[index]
                to_save = is_last or is_good or time.monotonic() - saved > 60 * self.settings.save_minutes
                if self.group.any(to_save) if self._saves_together(trainer) else to_save:
                    self._save(trainer, index, step, must=is_last, is_good=is_good)
                    saved = time.monotonic()
            self.group.tick("reading data")
            if stops and step < schedule.total:
                progress.close()
                raise Stopped(stops)
        progress.close()
        return step

    def _stopping(self, stop: threading.Event) -> int:
        """The signal that has reached one of the processes; 0 where none has, after which all go on."""
        number = getattr(stop, "number", 0) or signal.SIGINT
        return self.group.highest(number if stop.is_set() else 0)

    def _at(self, index: int, step: int) -> tuple[float, float]:
        """The learning rate, and the share of training done, of a stage at a step.

        The rate is that of the whole run, or of the stage where stages restart the schedule.
        """
        planned, at = self.schedule.planned, self.schedule.at(step, index)
        start, end = (self.starts[index], planned[index]) if self.recipe.restart else (0, planned[-1])
        rate = self.recipe.optim.rate(at - start, end - start, self.loader.steps_per_epoch)
        return rate * self.ladder.rate_factor(step), at / planned[-1]

    def shortened(self) -> dict[str, Any]:
        """The entry `updates` of `run.json` where not all that were planned were made, to end at the run's time."""
        made, planned = self.schedule.total, self.schedule.planned[-1]
        epochs = made / self.loader.steps_per_epoch
        return {} if made == planned else {"updates": {"made": made, "planned": planned, "epochs": round(epochs, 4)}}

    def _keep_time(self, index: int, step: int, progress: Progress) -> None:
        """Change the schedule where its end would miss the time that the run was given; rank zero decides for all."""
        schedule = self.schedule
        left = schedule.total - step
        tells = self.pace.tells(self.seconds, self.loader.is_first_pass)
        fit = self.pace.fitting(self.seconds, schedule.planned[-1] - step, left) if left and tells else None
        if fit := self.group.agree(fit or 0):
            schedule.change(step, index, fit)
            self.val_every = max(1, round(self.planned_val_every / schedule.stride))
        if tells and (text := self.pace.warning(schedule.planned[-1], schedule.total)):
            progress.log(text)

    def _batches(self, step: int, stage: int) -> Iterator[Batch]:
        """The batches after a step, up to the last of a stage."""
        per_epoch = self.loader.steps_per_epoch
        while step < self.schedule.ends[stage]:
            epoch = step // per_epoch
            batches = cast("Generator[Batch]", self.loader.batches(epoch, step - epoch * per_epoch))
            with closing(batches):  # ends its threads
                for batch in uploaded(batches, torch.device(self.settings.device)):
                    yield batch
                    step += 1
                    if step >= self.schedule.ends[stage]:
                        return

    def _log(self, window: MetricsWindow, progress: Progress, step: int, lr: float) -> None:
        broken = self.group.gather(self.loader.unreadable)
        wait = f"{window.data_wait(self.loader.wait_seconds):.4f}"
        waits = self.group.gather({f"{self.group.rank:06}": wait}) if self.group.size > 1 else {}
        if not self.group.is_rank_zero:
            return
        epoch = step / self.loader.steps_per_epoch
        line = {"kind": "step", "step": step, "epoch": epoch, "time": self.seconds, "lr": lr}
        line |= window.line(self.loader.wait_seconds)
        line |= {"data_waits": [float(waits[rank]) for rank in sorted(waits)]} if waits else {}
        line |= {"memory_mb": memory_used(torch.device(self.settings.device)), "skipped": self.ladder.skipped.read()}
        line |= {"spikes": self.ladder.skipped.health.spikes}
        self.run.log_metrics(line)
        total = self.schedule.total
        progress.update(progress_text(line, total, self.loader.steps_per_epoch), step, total)
        if broken:
            self.run.write_optional_json("broken.json", {**self.run.read("broken.json", {}), **broken})

    def _save_weights(self, trainer: Trainer, index: int, step: int) -> None:
        """Save the weights of a step for good; an error of the disk is logged."""
        with trainer.whole() as model:
            weights = model.state_dict()
        if not self.group.is_rank_zero:
            return
        self.run.check_place()
        if not self._keeps_weights(trainer.model):
            return
        state = {"stage": index, "epoch": step / self.loader.steps_per_epoch, "seconds": self.seconds}
        state |= {"returns": len(self.ladder.returns)}
        with self.run.tolerate_io_errors(checkpoint.WEIGHTS_FOLDER):
            checkpoint.save(self.run.path, step, weights, {}, state, self.metadata, self.save_at[step])

    def _saves_together(self, trainer: Trainer) -> bool:
        """Whether all processes have a part in saving: they gather what is sharded, or write their parts."""
        return trainer.is_sharded or trainer.saves_in_parts

    def _save(self, trainer: Trainer, index: int, step: int, must: bool, is_good: bool) -> None:
        """Save a checkpoint. Unless it `must`, an error of the disk is logged and training continues.

        Rank zero writes it, or each process its part. One that `is_good`, where nothing is wrong, stays for a while, to
        go back to.
        """
        in_parts = trainer.saves_in_parts
        if not self.group.is_rank_zero and not self._saves_together(trainer):
            return
        weights, moments = trainer.to_save()
        if not self.group.is_rank_zero and not in_parts:
            return
        self.run.check_place()
        epoch = step / self.loader.steps_per_epoch
        state: dict[str, Any] = {"stage": index, "epoch": epoch, "seconds": self.seconds}
        state["run"] = self.run.metadata  # so that a run.json that is lost can be restored
        if self.window.updates:
            state["window"] = self.window.state
        if changed := self.schedule.state:
            state["schedule"] = changed
        self.run.sync_metrics()
        try:
            state |= self.ladder.state(step if is_good else None, (*weights.values(), *moments.values()), in_parts)
            good = self.ladder.good if step < self.schedule.total else ()  # nothing goes back from the end
            written = checkpoint.save(self.run.path, step, weights, moments, state, self.metadata, None, good, in_parts)
            self.run.update_status("running", last_checkpoint=step)
            if self.run.listener is not None:
                self.run.listener.saved(step, written)
        except OSError as error:
            if must:
                hint = "once there is room, the same command continues from the last checkpoint"
                raise OSError(f"{error}; {hint}") from error
            log(f"warning: {error}; training continues, the last checkpoint is untouched")


def _steps_to_save(every: float | None, total: int, per_epoch: int) -> dict[int, float]:
    """The steps whose weights are saved for good, with their epochs: every so many, or by default a few of a run."""
    if every is not None:
        count = int(total / per_epoch / every + 1e-9)
        return {max(1, round(k * every * per_epoch)): k * every for k in range(1, count + 1)}
    steps = [round(share * total) for share in SAVED] if total >= FEWEST_STEPS else []
    return {step: float(f"{step / per_epoch:.4g}") for step in steps}


def _load(model: MaskedModel, resume: Checkpoint) -> None:
    try:
        model.load_state_dict(resume.model)
    except RuntimeError as error:
        raise ValueError(f"{resume.path} does not fit the recipe of the run: {error}") from error
