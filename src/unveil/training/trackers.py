"""Trackers of experiments as callbacks: TensorBoard, Weights & Biases, MLflow, trackio. Each is an extra.

All get the same numbers under the same names: `step/loss`, `signals/heldout_loss`, ... A run that is continued goes on
in the tracker's run that it began; `trackers.json` in the run folder knows which.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.extras import optional
from ..runs.atomic import write_json
from ..runs.regular_files import read_text
from .callbacks import Callback, TrainingEvent

_PROJECT = "unveil"  # unless the tracker's own variable of the environment names another
_MOST_PARAMETERS = 100  # that MLflow takes at once


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a line of metrics, nested ones too, as `kind/name/key`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        for key, number in (value if isinstance(value, Mapping) else {"": value}).items():
            if name not in ("kind", "step") and isinstance(number, (int, float)):
                flat["/".join(filter(None, (str(metrics.get("kind", "")), name, key)))] = number
    return flat


class Tracker(Callback):
    """A callback that logs all numbers by `log`."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send some numbers of a step."""

    def on_step(self, event: TrainingEvent) -> None:
        self.log(numbers_of(event.metrics), event.step)

    on_validation = on_event = on_step


class TensorBoard(Tracker):
    """Event files in `tensorboard/` of the run folder; what an earlier process wrote beyond the step is purged."""

    def on_start(self, event: TrainingEvent) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = event.step + 1 if event.step else 0  # a run that begins has nothing of a step 0 yet
        self.writer = SummaryWriter(str(event.run / "tensorboard"), purge_step=purged)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def on_end(self, event: TrainingEvent) -> None:
        self.writer.close()


class WandB(Tracker):
    """Weights & Biases: the project of WANDB_PROJECT, by default unveil; files of its own in the run folder."""

    def on_start(self, event: TrainingEvent) -> None:
        wandb = optional("wandb", needed("wandb"))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=event.run.name,
            id=kept(event.run, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(event.run),
            config=dict(event.options),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def on_end(self, event: TrainingEvent) -> None:
        self.run.finish(exit_code=int(event.status == "failed"))


class MLflow(Tracker):
    """MLflow: the experiment of MLFLOW_EXPERIMENT_NAME, by default unveil, at MLFLOW_TRACKING_URI."""

    def on_start(self, event: TrainingEvent) -> None:
        mlflow = optional("mlflow", needed("mlflow"))
        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self.client.create_experiment(name)

        def create() -> str:
            run = self.client.create_run(place, run_name=event.run.name)
            options = [mlflow.entities.Param(k, str(v)[:500]) for k, v in event.options.items()]
            for start in range(0, len(options), _MOST_PARAMETERS):
                self.client.log_batch(run.info.run_id, params=options[start : start + _MOST_PARAMETERS])
            return str(run.info.run_id)

        self.metric, self.run_id = mlflow.entities.Metric, kept(event.run, "mlflow", create)
        self.client.update_run(self.run_id, status="RUNNING")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
        self.client.log_batch(self.run_id, metrics=[self.metric(n, float(v), now, step) for n, v in finite.items()])

    def on_end(self, event: TrainingEvent) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(event.status, "KILLED")
        self.client.set_terminated(self.run_id, status)


class Trackio(Tracker):
    """trackio, Hugging Face's local tracker: the project of TRACKIO_PROJECT, by default unveil."""

    def on_start(self, event: TrainingEvent) -> None:
        self.trackio = optional("trackio", needed("trackio"))
        name = kept(event.run, "trackio", lambda: f"{event.run.name}-{uuid.uuid4().hex[:6]}")
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        options = {k: v for k, v in event.options.items() if not k.startswith("_")}
        self.trackio.init(project=project, name=name, config=options, resume="allow", embed=False)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(numbers), step=step)

    def on_end(self, event: TrainingEvent) -> None:
        self.trackio.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def needed(name: str) -> str:
    """The message that a tracker's package is missing."""
    return f"--log {name} needs a package that is not here: pip install 'unveil[{name}]'"


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise ValueError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(needed(name))


def kept(run: Path, tracker: str, make: Callable[[], str]) -> str:
    """The identity of a run in a tracker, made once and kept in the run folder."""
    file = run / "trackers.json"
    known = json.loads(read_text(file)) if file.is_file() else {}
    if tracker not in known:
        known[tracker] = make()
        write_json(file, known)
    return str(known[tracker])
