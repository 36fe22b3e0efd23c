"""`unveil pretrain`: a recipe, the user's images, a run folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Unpack, get_type_hints, overload

from ..data.columns import split_columns
from ..data.identity import identities, stored_identities
from ..data.listing import sharing_listings
from ..modeling.masked_model import MaskedModel
from ..modeling.public_vits import load_weights
from ..recipes.own_score import content_of, own_scores
from ..recipes.recipe import Recipe
from ..recipes.registry import load_recipe, options_of
from ..reporting.lamps import last_lines
from ..reporting.run_record import read_run
from ..runs.atomic import make_folder, write_bytes, write_json
from ..runs.console import Diverged, is_rank_zero, log, user_path
from ..runs.folder import (
    OWN_RECIPE,
    OWN_SCORE,
    TRAINED,
    TRAINED_IMAGES,
    FinishedError,
    LongerError,
    ReadOnlyRun,
    RunFolder,
    check_apart,
    check_writable,
    choose_folder,
    has_trained,
    is_continuation,
)
from ..runs.regular_files import check_links
from ..runs.threads import use_threads
from ..runs.trust import remember
from ..training.callbacks import Callbacks
from ..training.config import PretrainConfig, signature
from ..training.data_setup import check_images, facts_to_store, make_loader
from ..training.distributed import Group, process_group
from ..training.extend import extend
from ..training.init_from import schedule_metadata
from ..training.ladder import HALVINGS, WentBack, finish_return, log_returns
from ..training.loop import Loop
from ..training.monitor import ValidationMonitor
from ..training.setup import TrainingSetup, set_up_new, set_up_resumed
from ..training.stopping import stop_on_signal
from ..training.trackers import TRACKERS, check_trackers
from .option_types import PretrainOptions
from .run import Run


@overload
def pretrain(
    recipe: str | PathLike[str] | None = None,
    *,
    save_config: str | PathLike[str],
    callbacks: Sequence[object] = (),
    **options: Unpack[PretrainOptions],
) -> Path: ...
@overload
def pretrain(
    recipe: str | PathLike[str] | None = None,
    *,
    save_config: None = None,
    callbacks: Sequence[object] = (),
    **options: Unpack[PretrainOptions],
) -> Run: ...
def pretrain(
    recipe: str | PathLike[str] | None = None,
    *,
    save_config: str | PathLike[str] | None = None,
    callbacks: Sequence[object] = (),
    **options: Unpack[PretrainOptions],
) -> Run | Path:
    """Pretrain a ViT on images without labels; returns the run, or with `save_config` the path of the file.

    An unfinished run with the same recipe and options in `out` is continued; a finished one is returned as it is. When
    `torchrun` starts several processes, they train one model together, each on its share of every batch. `callbacks`
    are told how it goes (`unveil.Callback`).

    >>> import unveil
    >>> options = dict(size="nano", image_size=16, patch=4, epochs=0.5, batch_size=8, device="cpu")
    >>> run = unveil.pretrain("mae", data="images", out="runs/a", **options)
    >>> run.config.status
    'finished'
    """
    given = options if save_config is None else {**options, "save_config": save_config}
    config = PretrainConfig.resolve(None if recipe is None else str(recipe), given)
    if config.save_config is not None:
        return _save_config(config, user_path(config.save_config))
    with use_threads(config.threads), process_group(config.hang_minutes) as group:
        path = _lead(config, group, callbacks) if group.is_rank_zero else _follow(config, group)
    return Run(path, trust=config.trust)


# The options are those of PretrainConfig and of the recipes, listed there; completion reads them here.
pretrain.__dict__["__signature__"] = signature(get_type_hints(PretrainOptions))
pretrain.__doc__ = f"{pretrain.__doc__}\n{str(PretrainConfig.__doc__).partition(chr(10) * 2)[2]}"


def _save_config(config: PretrainConfig, path: Path) -> Path:
    check_writable(path.parent)
    if is_rank_zero():
        resolved = set_up_new(config).config
        assert resolved
        resolved.save(path)
        log(f"wrote {path}; unveil pretrain --config {path} trains with it")
    return path


def _lead(config: PretrainConfig, group: Group, callbacks: Sequence[object]) -> Path:
    """Rank zero, or a process alone: set up the run, write its folder and train."""
    with ExitStack() as stack:
        with sharing_listings({}) as listings:
            run, setup = group.broadcast(
                lambda: _open(config, group.size, stack),
                lambda opened: (str(opened[0].path), opened[1] is not None, listings),
            )
        listings.clear()
        if setup is None:
            return run.path
        while (path := _train(run, setup, config, group, callbacks)) is None:
            del setup  # its model may fill a GPU
            setup = group.broadcast(lambda: _reopen(run, config, group.size), lambda _: True)
        return path


def _follow(config: PretrainConfig, group: Group) -> Path:
    """The other processes: resume the run that rank zero has just opened, on the files it has listed, and train."""
    path, is_unfinished, listings = group.receive()
    run = ReadOnlyRun(Path(path))
    if not is_unfinished:
        return run.path
    with sharing_listings(listings):
        setup = set_up_resumed(config, run.path, group.size)
    while (trained := _train(run, setup, config, group)) is None:
        del setup
        group.receive()
        setup = set_up_resumed(config, run.path, group.size)
    return trained


def _open(config: PretrainConfig, processes: int, stack: ExitStack) -> tuple[RunFolder, TrainingSetup | None]:
    """The run, new or continued, and its set-up: none where it is finished, which is said and is no mistake.

    It is locked until the stack closes; a wrong option writes nothing.
    """
    check_trackers(config.trackers)
    folder = choose_folder(config.out, config.name)
    check_writable(folder)
    check_apart(folder, split_columns(config.data)[0])
    longer: LongerError | None = None
    try:
        continues = is_continuation(folder, config.fingerprint, config.overwrite)
    except LongerError as error:
        continues, longer = True, error
    except FinishedError as finished:
        log(str(finished))
        return RunFolder(folder), None
    if continues:
        run = RunFolder(folder)
        if not config.trust:
            check_links(folder, TRAINED)
        stack.enter_context(run.lock())
        run.restore_metadata()
        finish_return(run)
        if longer is not None:
            extend(run, config.fingerprint, longer)
        setup = _reopen(run, config, processes)
        if longer is not None:
            run.update_metadata(schedule=schedule_metadata(setup.recipe, config.continue_schedule))
        check_images(folder, setup.train)
        return run, setup
    setup = set_up_new(config, processes)
    run = _make_folder(config)
    stack.enter_context(run.lock())
    _write_start(run, setup, config)
    return run, setup


def _reopen(run: RunFolder, config: PretrainConfig, processes: int) -> TrainingSetup:
    """The set-up of a run that goes on from its newest checkpoint, with nothing of later steps in its folder."""
    setup = set_up_resumed(config, run.path, processes)
    run.continue_from(setup.step)
    log_returns(run)
    return setup


def _make_folder(config: PretrainConfig) -> RunFolder:
    """Make the run folder; without `out` under the next free name, even if another process takes one meanwhile."""
    while True:
        folder = choose_folder(config.out, config.name)
        try:
            make_folder(folder, exist_ok=config.out is not None)
        except FileExistsError:
            if config.out is not None:
                raise
            continue
        return RunFolder(folder)


def _write_start(run: RunFolder, setup: TrainingSetup, config: PretrainConfig) -> None:
    """Write the files of a new run; `run.json` comes last, as a folder without it holds no run."""
    if not config.overwrite and has_trained(run.path):
        raise ValueError(f"another process has started a run in {run.path}; give another --out")
    run.clear()
    try:
        if config.is_own_recipe:
            content = user_path(config.recipe).read_bytes()
            write_bytes(run.path / OWN_RECIPE, content)
            remember(user_path(config.recipe), content)
        for option in own_scores(config.recipe_options).values():
            content = content_of(option)
            write_bytes(run.path / OWN_SCORE, content)
            remember(run.path / OWN_SCORE, content)
        assert setup.inspection
        assert setup.config
        setup.config.save(run.path / "config.yaml")
        write_json(run.path / "inspection.json", facts_to_store(setup.inspection))
        known = getattr(setup.inspection, "identities", None)
        write_bytes(run.path / TRAINED_IMAGES, stored_identities(identities(setup.train, known)))
        if setup.inspection.unreadable:
            write_json(run.path / "broken.json", setup.inspection.unreadable)
        (run.path / "metrics.jsonl").touch()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        run.update_metadata(**setup.metadata, started=started, last_checkpoint=None)
    except OSError:
        run.clear()
        raise


def _train(
    run: RunFolder, setup: TrainingSetup, config: PretrainConfig, group: Group, callbacks: Sequence[object] = ()
) -> Path | None:
    """Train to the end or until the process is stopped, with the status in `run.json`; None where it went back."""
    command, recipe = config.command(run.path), setup.recipe

    def start(model: MaskedModel) -> None:
        if setup.initial is not None:
            load_weights(model, setup.initial.weights)

    listener, status = None, "failed"
    try:
        run.update_metadata(status="running", error=None, command=command, settings=setup.metadata["settings"])
        own = [*callbacks, *(TRACKERS[name]() for name in config.trackers)] if group.is_rank_zero else []
        listener = run.listener = Callbacks(own, run.path, setup.metadata["options"])
        shard, device = (group.rank, group.size), setup.settings.device
        loader = make_loader(setup.train, recipe, setup.modalities, config, device, shard)
        monitor = ValidationMonitor(run, setup.train, setup.held_out, setup.modalities, recipe.view.image_size)

        def validate(model: MaskedModel, epoch: float, step: int) -> None:
            if group.is_rank_zero:  # the others have the same weights
                monitor(model, epoch, step)
                listener.validated(model)

        header = {k: setup.metadata[k] for k in ("unveil", "recipe", "options", "modality", "model")}
        loop = Loop(
            run,
            recipe,
            loader,
            setup.settings,
            config.seed,
            validate,
            {"unveil": json.dumps(header)},
            group,
            setup.plan,
        )
        if group.watch is not None:
            group.watch.before_end = lambda reason: run.update_status("failed", error=reason)
        with stop_on_signal(group) as stop, group.explained():
            listener.start(max(0, setup.step), loop.schedule.total)
            moments = setup.initial.moments if setup.initial else {}
            model = loop.train(stop, start, setup.resume, moments)
            if group.is_rank_zero:
                monitor.finish(model)
            status = "finished"
            run.update_status(status, seconds=loop.seconds, **loop.shortened())
    except KeyboardInterrupt:
        status = "stopped"
        run.update_status(status)
        log(f"stopped; everything is in {run.path}. To continue: {command}")
        raise
    except WentBack:
        status = "returned"
        return None
    except Diverged as error:
        run.update_status("failed", error=f"Diverged: {error}"[:500])
        raise Diverged(f"{error}\n{_remedy(error, run, recipe, config)}") from error
    except BaseException as error:
        run.update_status("failed", error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        if listener is not None:
            listener.end(status)
            run.listener = None
    if group.is_rank_zero:
        print("\n".join(last_lines(read_run(run.path))), flush=True)
    if stop.is_set():  # in the last update or after it: what was to come after this run is not wanted
        log(f"{run.path} was finished before it could be stopped")
        raise KeyboardInterrupt
    return run.path


def _remedy(error: Diverged, run: RunFolder, recipe: Recipe, config: PretrainConfig) -> str:
    """What to do about a divergence: a command that trains in another way."""
    replayed = f"why: unveil replay {shlex.quote(str(run.path))}"
    if error.remedy == "images":
        return f"try: repair or leave out those images, and give another --out\n{replayed}"
    if error.remedy == "float32":
        return f"try: {replace(config, precision='float32').command(run.path)}\n{replayed}"
    options = {option.name: option for option in options_of(load_recipe(config.recipe))}
    if "lr" not in options:
        return f"try: a lower learning rate in {config.recipe}, and another --out\n{replayed}"
    default, tried = options["lr"].default, recipe.optim.lr * 0.5**HALVINGS
    lower = min(tried / 2, default) if isinstance(default, int | float) else tried / 2
    calmer = replace(config, recipe_options={**config.recipe_options, "lr": float(f"{lower:.2g}")})
    out = next(path for n in count(2) if not (path := run.path.with_name(f"{run.path.name}-{n}")).exists())
    return f"try: {calmer.command(out)}\n{replayed}"
