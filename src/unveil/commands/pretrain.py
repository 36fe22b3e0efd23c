"""`unveil pretrain`: a recipe, the user's images, a run folder."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..data.loader import Loader
from ..modeling.masked_model import MaskedModel
from ..modeling.public_vits import load_weights
from ..runs.atomic import write_json
from ..runs.console import log
from ..runs.folder import ReadOnlyRun, RunFolder, check_apart, check_writable, choose_folder, is_continuation
from ..runs.hardware import Precision
from ..runs.tensorboard import TensorBoardWriter, check_tensorboard
from ..training.config import Compile, Continue, HeldOut, PretrainConfig
from ..training.distributed import Group, process_group
from ..training.loop import Loop, stop_on_signal
from ..training.monitor import ValidationMonitor
from ..training.setup import TrainingSetup, set_up_new, set_up_resumed


def pretrain(
    recipe: str,
    *,
    data: str = "scenes",
    modalities: tuple[str, ...] = (),
    group_by: str | None = None,
    held_out: HeldOut = "spread",
    held_out_share: float = 0.05,
    out: str | None = None,
    init_from: str | None = None,
    init_bands: tuple[str, ...] = (),
    init_epoch: float | None = None,
    continue_schedule: Continue = "restart",
    overwrite: bool = False,
    paper: bool = False,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    compile: Compile = "auto",
    micro_batch: int | None = None,
    workers: int | None = None,
    save_minutes: float = 10.0,
    signals_every: float | None = None,
    keep_every: float | None = None,
    max_broken: float = 0.05,
    tensorboard: bool = False,
    **dials: Any,
) -> Path:
    """Pretrain a ViT on images without labels; returns the run folder.

    An unfinished run of the same recipe and dials in `out` is continued. Started several times by `torchrun`, the
    processes train one model together; each takes its share of every batch.

    data: a folder of images, a Parquet file, or scenes (rendered here); with modalities, a folder that holds one for
        each, or scenes
    modalities: rgb, depth, semseg, or .toml files that declare others; by default what the recipe reads
    group_by: keeps a patient or a scene on one side of the split: a level of the path (1 is the first folder), or a
        regex with one group
    held_out: spread over the images, or the last part, for images in the order of time
    held_out_share: of the images, never trained on: label-free signals and pictures
    out: the run folder; by default runs/<recipe>-<n>
    init_from: start from these weights: a run, or a public MAE or CrossMAE checkpoint
    init_bands: how the first projection of init_from becomes one for other bands: mean, repeat, or for each band the
        number of a trained one (0 is red) or mean
    init_epoch: epochs that init_from was trained; a run of unveil knows its own
    continue_schedule: with init_from, begin the schedule anew, ride the tail of the one that its training was on, or
        that with ten times the rate
    overwrite: replace the run that the folder holds
    paper: keep every default of the paper; otherwise batch, size and epochs are fitted to data and machine
    minutes: how long to train, which sets the epochs; by default 10 on a processor, 120 on a GPU
    seed: of initialisation, order, views and masks
    device: cpu, cuda, cuda:1, mps; auto takes the best
    precision: of the arithmetic; auto takes bf16 where the device has it in hardware
    compile: compile the step with torch.compile; auto does on a GPU
    micro_batch: images that are computed at once; changes memory and speed, not the result
    workers: threads that prepare images
    save_minutes: minutes between checkpoints
    signals_every: epochs between looks at held-out images; by default a tenth of the run, fewer in a short one
    keep_every: epochs between weights that stay in the folder, for `evaluate --at-epoch` and `analyze attention`
    max_broken: share of unreadable images above which the run stops
    tensorboard: write the metrics as TensorBoard's event files too
    """
    asked = PretrainConfig(**locals())
    with process_group() as group:
        return _lead(asked, group) if group.is_rank_zero else _follow(asked, group)


def _lead(asked: PretrainConfig, group: Group) -> Path:
    """What a process alone does; in a group it is the first that decides and writes, and the others follow."""
    with ExitStack() as stack:
        setup: TrainingSetup | None = None

        def begin() -> str:
            nonlocal setup
            run, setup = _open(asked, group.size, stack)
            return str(run.path)

        run = RunFolder(Path(group.broadcast(begin)))
        assert setup
        return _train(run, setup, asked, group)


def _follow(asked: PretrainConfig, group: Group) -> Path:
    """To a process that joins, a run that was just begun is one to go on with: its folder has all that was decided."""
    run = ReadOnlyRun(Path(group.receive()))
    return _train(run, set_up_resumed(asked, run.path, group.size), asked, group)


def _open(asked: PretrainConfig, processes: int, stack: ExitStack) -> tuple[RunFolder, TrainingSetup]:
    """The run, locked for as long as the stack lasts, and all that training takes; nothing is written on a mistake."""
    if asked.tensorboard:
        check_tensorboard()
    folder = choose_folder(asked.out, asked.name)
    check_writable(folder)
    check_apart(folder, asked.data)
    if is_continuation(folder, asked.identity, asked.overwrite):
        run = RunFolder(folder)
        stack.enter_context(run.lock())
        setup = set_up_resumed(asked, folder, processes)
        run.remove_partial_files()
        run.rewind(setup.resume.state["step"] if setup.resume else -1)
        return run, setup
    setup = set_up_new(asked, processes)
    run = _claim(asked)
    stack.enter_context(run.lock())
    _begin(run, setup, asked)
    return run, setup


def _claim(asked: PretrainConfig) -> RunFolder:
    """The run folder, made. Where it is ours to name, another run may have taken the name since we looked."""
    while True:
        folder = choose_folder(asked.out, asked.name)
        try:
            folder.mkdir(parents=True, exist_ok=asked.out is not None)
        except FileExistsError:
            if asked.out is not None:
                raise
            continue
        return RunFolder(folder)


def _begin(run: RunFolder, setup: TrainingSetup, asked: PretrainConfig) -> None:
    """Write what a run begins with; `run.json` comes last, and what is here without it is no run."""
    if not asked.overwrite and (run.path / "run.json").exists():
        raise ValueError(f"another run was begun in {run.path} meanwhile; give another --out")
    run.clear()
    try:
        if asked.is_own_recipe:
            shutil.copyfile(Path(asked.recipe).expanduser(), run.path / "recipe.py")
        assert setup.inspection
        write_json(run.path / "inspection.json", setup.inspection.to_dict())
        if setup.inspection.unreadable:
            write_json(run.path / "broken.json", setup.inspection.unreadable)
        (run.path / "metrics.jsonl").touch()
        run.update_metadata(**setup.metadata, started=datetime.now(UTC).isoformat(timespec="seconds"))
    except OSError:
        run.clear()
        raise


def _train(run: RunFolder, setup: TrainingSetup, asked: PretrainConfig, group: Group) -> Path:
    """Train to the end, or to where it is stopped; `run.json` says which."""
    command = asked.command(run.path)
    built, modalities = setup.recipe, setup.modalities

    def start(model: MaskedModel) -> None:
        if setup.weights is not None:
            load_weights(model, setup.weights)

    try:
        run.update_metadata(status="running", error=None, command=command, settings=setup.metadata["settings"])
        if asked.tensorboard and group.is_rank_zero:
            run.tensorboard = TensorBoardWriter(run.path, setup.resume.state["step"] if setup.resume else -1)
        loader = Loader(
            setup.train,
            built.view,
            built.optim.batch_size,
            asked.seed,
            workers=asked.workers,
            max_broken=asked.max_broken,
            modality=modalities,
            part=(group.rank, group.size),
        )
        watcher = ValidationMonitor(run, setup.train, setup.held_out, modalities, built.view.image_size)
        watch = watcher if group.is_rank_zero else _look_away
        told = {k: setup.metadata[k] for k in ("unveil", "recipe", "dials", "modality", "model")}
        loop = Loop(run, built, loader, setup.settings, asked.seed, watch, {"unveil": json.dumps(told)}, group)
        with stop_on_signal() as stop:
            model = loop.train(stop, start, setup.resume)
            if group.is_rank_zero:
                watcher.finish(model)
    except KeyboardInterrupt:
        run.update_status("stopped")
        log(f"stopped; everything is in {run.path}. To go on: {command}")
        raise
    except BaseException as error:
        run.update_status("failed", error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        if run.tensorboard is not None:
            run.tensorboard.close()
    run.update_status("finished", seconds=loop.seconds)
    return run.path


def _look_away(model: MaskedModel, epoch: float, step: int) -> None:
    """What a process does while the first one looks at held-out images."""
