"""`unveil replay`: a recorded training step again, in float32 with anomaly detection, to see where it went wrong."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ..data.given_types import Data
from ..data.splits import names_digest
from ..data.upload import uploaded
from ..modeling.rng import seed_stage, step_key
from ..modeling.types import Batch
from ..recipes.options import accept_python_values, as_text
from ..recipes.registry import check_named
from ..recipes.run import Run
from ..runs.checkpoint import Checkpoint, read, restore_optimizer
from ..runs.checkpoint_state import replay_folder
from ..runs.console import quoted
from ..runs.folder import OWN_RECIPE
from ..runs.hardware import choose_device
from ..runs.run_config import Precision
from ..training.config import PretrainConfig
from ..training.data_setup import make_loader, open_data, split_data
from ..training.diagnosis import Finding, examine, named
from ..training.run_metadata import read_settings
from ..training.trainer import Trainer

_CLOSE = 0.05  # relative difference of losses that precision explains


@dataclass(frozen=True)
class Replay:
    """A repeated step: where its first number that is not finite arises, and its losses beside the recorded ones.

    `operation` is the operation whose gradient is not finite, with the line of code that made it; empty without one.
    """

    step: int
    finding: Finding
    recorded: Mapping[str, float]
    operation: str = ""
    in_its_precision: Finding | None = None  # of a step in bf16 that is finite in float32

    def __str__(self) -> str:
        lines = [f"first number that is not finite: {self.finding.where}"]
        lines += [f"operation: {self.operation}"] if self.operation else []
        if self.in_its_precision is not None:
            lines.append(f"in bf16, as it was trained: {self.in_its_precision.where}")
        for name, loss in self.finding.losses.items():
            before = self.recorded.get(name, math.nan)
            same = abs(loss - before) <= _CLOSE * abs(before) or (not math.isfinite(loss) and not math.isfinite(before))
            lines.append(f"loss {name}: {loss:.6g} now, {before:.6g} recorded{'' if same else ': they differ'}")
        return "\n".join(lines)


@accept_python_values
def replay(
    run: str | Path | Run,
    *,
    data: Data | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    trust: bool = False,
) -> Replay:
    """Repeat the step that a run has recorded: the last that was refused, or at which training went back.

    Its samples, their views and masks, and the weights and moments before it are those of the run. Nothing is written.
    Raises ValueError where no step was recorded, or the images are others.

    data: where the images are now, if they have moved
    device: cpu, cuda, cuda:1, mps; auto takes the best
    precision: of the arithmetic: float32, or bf16
    trust: execute the run's own recipe file where you have not run it before

    >>> import unveil
    >>> unveil.replay("runs/a")
    Traceback (most recent call last):
    ValueError: runs/a has recorded no step: no update was refused, and training never went back
    """
    stored = run if isinstance(run, Run) else Run.open(run, trust)
    folder = replay_folder(stored.path)
    if folder is None:
        raise ValueError(f"{stored.path} has recorded no step: no update was refused, and training never went back")
    recorded = read(folder)
    state = recorded.state
    file = stored.path / OWN_RECIPE
    if file.exists():
        check_named(str(file), stored.path, stored.trust)
    given = {"config": str(stored.path / "config.yaml"), **({"data": as_text(data)} if data else {})}
    config = PretrainConfig.resolve(str(file) if file.exists() else None, given)
    trainer = _trainer(stored, recorded, str(choose_device(device)), precision)
    batch, images = _batch(stored, config, state, trainer)
    trainer.model.before_step(state["step"] - 1, state["progress"])
    why = f"step {state['step']} of {stored.path}, {state['precision']}: {state['why']}"
    print(f"{why}\nimages: {named([quoted(name) for name in state['images']])}", flush=True)
    finding = examine(trainer, batch, images, precision)
    own = None
    if finding.is_finite and state["precision"] != precision:
        own = examine(trainer, batch, images, state["precision"])
    losses = {name: float(loss) for name, loss in state["losses"].items()}
    result = Replay(state["step"], finding, losses, _operation(trainer, batch, images, precision), own)
    print(result, flush=True)
    return result


def _trainer(run: Run, recorded: Checkpoint, device: str, precision: Precision) -> Trainer:
    """The model with the weights and moments before the step, on a device, not compiled."""
    recipe, stage = run.recipe(), recorded.state["stage"]
    seed_stage(run.config.seed, stage)
    model = recipe.stages[stage].build()
    model.load_state_dict(recorded.model)
    settings = read_settings(run.config.content.get("settings", {}))
    trainer = Trainer(model, recipe.optim, replace(settings, device=device, precision=precision, compile=False))
    restore_optimizer(model, trainer.optimizer, recorded.optimizer)
    return trainer


def _batch(run: Run, config: PretrainConfig, state: Mapping[str, Any], trainer: Trainer) -> tuple[Batch, list[str]]:
    """The batch of the step, and the image of each sample by name. Raises ValueError where the images are others."""
    source = open_data(config.address, run.declared, as_recorded=True)
    stored = run.config.data
    if names_digest(source) != stored.names:
        raise ValueError(
            f"{run.path} was trained on the {stored.count} images of {stored.address}; the {len(source)} of"
            f" {source.address} are others. Give the same images by --data"
        )
    train, _ = split_data(source, config, run.config.seed)
    optim = replace(trainer.optim, batch_size=len(state["samples"]))
    recipe = replace(run.recipe(), optim=optim)
    loader = make_loader(train, recipe, run.modalities, config, trainer.settings.device)
    epoch, place = divmod(state["step"] - 1, loader.steps_per_epoch)
    samples = loader.order(epoch)[place * loader.batch_size :][: loader.batch_size].tolist()
    if samples != state["samples"]:
        raise ValueError(
            f"the samples of step {state['step']} are others by now; replay needs the unveil that trained it"
        )
    batches = cast("Generator[Batch]", loader.batches(epoch, place))
    with closing(batches):
        batch = next(iter(uploaded(batches, torch.device(trainer.settings.device))))
    key = step_key(run.config.seed, state["step"] - 1)
    batch = replace(batch, progress=torch.tensor(state["progress"]), step_key=key)
    return batch, [train.name(i) for i in samples]


def _operation(trainer: Trainer, batch: Batch, images: list[str], precision: str) -> str:
    """The operation whose gradient is not finite, by anomaly detection, and the line that made it; empty without."""
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            examine(trainer, batch, images, precision)
        except RuntimeError as error:
            function = re.search(r"Function '(\w+)' returned nan", str(error))
            if function is None:
                raise
            lines = re.findall(r'File "([^"]+)", line (\d+)', "".join(str(warning.message) for warning in caught))
            made = [f", of {file}, line {line}" for file, line in lines if "unveil" in Path(file).parts]
            return function[1] + (made[-1] if made else "")
    return ""
