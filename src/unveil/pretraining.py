"""`unveil pretrain`: a recipe, the user's images, a run folder."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from . import __version__
from .checkpoint import read_latest, write_json
from .data.inspection import Inspection, inspect_source
from .data.loader import Loader
from .data.sources import Source, open_source, split
from .foreign import load_weights, read_weights, translate
from .machine import Precision, choose_device, choose_precision, git_commit, num_cores, versions
from .model import MaskedModel
from .plan import MINUTES, Change, Plan, first_micro_batch, fit_schedule, fit_shape, measure_step
from .progress import duration
from .recipe import Recipe
from .recipe_files import load_recipe
from .records import Modality
from .runs import RunFolder, check_writable, choose_folder, is_continuation
from .training import Loop, Settings, seed_stage
from .watch import Watcher

HELD_OUT = 0.05  # of the images, never trained on: label-free signals and pictures


def pretrain(
    recipe: str,
    *,
    data: str = "scenes",
    out: str | None = None,
    init_from: str | None = None,
    overwrite: bool = False,
    paper: bool = False,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    micro_batch: int | None = None,
    workers: int | None = None,
    save_minutes: float = 10.0,
    signals_every: float | None = None,
    max_broken: float = 0.05,
    **dials: Any,
) -> Path:
    """Pretrain a ViT on images without labels; returns the run folder.

    An unfinished run of the same recipe and dials in `out` is continued.

    data: a folder of images, a Parquet file, or scenes (rendered here)
    out: the run folder; by default runs/<recipe>-<n>
    init_from: start from these weights: a run, or a public MAE or CrossMAE checkpoint
    overwrite: replace what the run folder holds
    paper: keep every default of the paper; otherwise batch, size and epochs are fitted to data and machine
    minutes: how long to train, which sets the epochs; by default 10 on a processor, 120 on a GPU
    seed: of initialisation, order, views and masks
    device: cpu, cuda, cuda:1, mps; auto takes the best
    precision: of the arithmetic; auto takes bf16 where the device has it in hardware
    compile: compile the step with torch.compile; auto does on a GPU
    micro_batch: images that are computed at once; changes memory and speed, not the result
    workers: threads that prepare images
    save_minutes: minutes between checkpoints
    signals_every: epochs between looks at held-out images; by default a tenth of the run
    max_broken: share of unreadable images above which the run stops
    """
    load = load_recipe(recipe)
    name = Path(recipe).stem
    folder = choose_folder(out, name)
    check_writable(folder)
    asked = {"recipe": name, "data": data, "seed": seed, "paper": paper, "minutes": minutes, "init_from": init_from}
    asked |= {dial: _json_like(value) for dial, value in dials.items()}
    chosen = choose_device(device)
    source = open_source(data)
    if is_continuation(folder, asked, overwrite):
        return _continue(folder, load, source, chosen, workers, save_minutes, max_broken)

    _check_dials(load, dials)
    say(f"looking at {data} ...")
    found = inspect_source(source)
    _check_broken(found, source, max_broken)
    for line in found.lines():
        say(f"  {line}")
    train, held_out = split(source, HELD_OUT, seed)
    modality = Modality("rgb", source.channels, _rounded(found.mean), _rounded(found.std, least=1e-3))
    plan = Plan(load, dials)
    if not paper:
        fit_shape(plan, found, len(train), chosen)

    def build() -> Recipe:
        seed_stage(seed, -1)
        return load(modality=modality, **plan.dials)

    built = build()
    _check_model(built)
    weights = _initial_weights(init_from) if init_from else None
    settings = Settings(
        str(chosen),
        choose_precision(precision, chosen),
        micro_batch or first_micro_batch(built, min(built.optim.batch_size, len(train)), chosen),
        compile=compile == "on" or (compile == "auto" and chosen.type == "cuda"),
        save_minutes=save_minutes,
        signals_every=1.0,
    )
    settings, seconds = _measure(built, settings, len(train), fixed=micro_batch is not None)
    per_epoch = max(1, len(train) // built.optim.batch_size)
    if not paper:
        fit_schedule(plan, per_epoch, seconds, minutes or MINUTES.get(chosen.type, 30.0))
    elif minutes is not None:
        raise ValueError("--paper keeps the paper's epochs, --minutes sets them; give one of the two")
    built = build()
    epochs = float(built.epochs)
    settings = replace(settings, signals_every=signals_every or max(1 / per_epoch, epochs / 10))
    _tell(plan.changes, built, settings, len(train), per_epoch * epochs * seconds)

    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.lock()
    if recipe.endswith(".py"):
        shutil.copyfile(Path(recipe).expanduser(), folder / "recipe.py")
    (folder / "metrics.jsonl").touch()
    write_json(folder / "inspection.json", found.to_dict())
    run.write_facts(
        unveil=__version__,
        recipe=name,
        asked=asked,
        dials={dial: _json_like(value) for dial, value in plan.dials.items()},
        modality=asdict(modality),
        changes=[asdict(change) for change in plan.changes],
        data=_data_facts(source, train, held_out, built, modality),
        settings=asdict(settings)
        | {"accumulation": -(-built.optim.batch_size // settings.micro_batch), "threads": torch.get_num_threads()}
        | {"workers": workers or num_cores()},
        optim=asdict(built.optim) | {"peak_lr": built.optim.peak_lr},
        seed=seed,
        command=_command(),
        versions=versions(chosen),
        git=git_commit(),
        status="running",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    loader = _loader(source, train, built, seed, workers, max_broken, modality)
    return _run(run, built, loader, settings, seed, train, held_out, modality, weights)


def _continue(
    folder: Path,
    load: Callable[..., Recipe],
    source: Source,
    device: torch.device,
    workers: int | None,
    save_minutes: float,
    max_broken: float,
) -> Path:
    """Take up an unfinished run where its newest whole checkpoint left it, with the plan that it was begun with."""
    run = RunFolder(folder)
    run.lock()
    facts = run.facts
    found, complaints = read_latest(folder)
    for complaint in complaints:
        say(f"warning: {complaint}; the checkpoint before it is used")
    modality = read_modality(facts)
    seed = facts["seed"]
    seed_stage(seed, -1)
    built = load(modality=modality, **read_dials(facts))
    fields = {name: facts["settings"][name] for name in Settings.__dataclass_fields__}
    settings = Settings(**{**fields, "device": str(device), "save_minutes": save_minutes})
    train, held_out = split(source, HELD_OUT, seed)
    counted = facts["data"]["count"]
    if len(source) != counted:
        raise ValueError(f"{folder} was begun on {counted} images, there are now {len(source)}; the same are needed")
    say(f"continuing {folder} at step {found.state['step'] if found else 0}")
    run.write_facts(status="running")
    loader = _loader(source, train, built, seed, workers, max_broken, modality)
    return _run(run, built, loader, settings, seed, train, held_out, modality, None, resume=found)


def _run(
    run: RunFolder,
    built: Recipe,
    loader: Loader,
    settings: Settings,
    seed: int,
    train: Source,
    held_out: Source,
    modality: Modality,
    weights: Mapping[str, torch.Tensor] | None,
    resume: Any = None,
) -> Path:
    watcher = Watcher(run, train, held_out, modality, built.view.image_size)
    last: list[MaskedModel] = []

    def watch(model: MaskedModel, epoch: float, step: int) -> None:
        last[:] = [model]
        if step == 0:
            run.write_facts(model=_model_facts(model))
        watcher(model, epoch, step)

    def start(model: MaskedModel) -> None:
        if weights is not None:
            report = load_weights(model, translate(weights, modality.name))
            say(str(report))
            if not report.loaded:
                raise ValueError(
                    "no tensor of --init-from fits this model; is it a checkpoint of another architecture?"
                )

    facts = run.facts
    metadata = {"unveil": json.dumps({k: facts[k] for k in ("unveil", "recipe", "dials", "modality")})}
    loop = Loop(run, built, loader, settings, seed, watch, metadata)
    try:
        loop.train(resume, start)
        watcher.finish(last[0]) if last else None
    except KeyboardInterrupt:
        say(f"stopped; everything is in {run.path}. To go on: {facts.get('command', 'the same command again')}")
        raise
    except BaseException as error:
        if run.facts.get("status") == "running":
            run.write_facts(status="failed", error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        run.unlock()
    return run.path


def _loader(
    source: Source, train: Source, built: Recipe, seed: int, workers: int | None, max_broken: float, modality: Modality
) -> Loader:
    return Loader(
        train, built.view, built.optim.batch_size, seed, workers=workers, max_broken=max_broken, modality=modality.name
    )


def read_modality(facts: Mapping[str, Any]) -> Modality:
    """The modality of a run, from its facts."""
    told = facts["modality"]
    return Modality(told["name"], told["channels"], tuple(told["mean"]), tuple(told["std"]))


def read_dials(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The dials of a run, from its facts; JSON has no tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in facts["dials"].items()}


def say(text: str) -> None:
    """What a person should know while the command runs: to stderr, results go to stdout."""
    print(text, file=sys.stderr, flush=True)


def _measure(built: Recipe, settings: Settings, num_train: int, fixed: bool) -> tuple[Settings, float]:
    """Seconds per update; on a GPU, the largest micro-batch that fits; without compilation where that fails."""
    while True:
        try:
            size = min(built.optim.batch_size, num_train)
            return settings, measure_step(built, settings, size, built.encoder.modalities[0].channels)
        except torch.OutOfMemoryError:
            if fixed or settings.micro_batch == 1:
                raise
            torch.cuda.empty_cache()
            settings = replace(settings, micro_batch=settings.micro_batch // 2)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:  # type: ignore[attr-defined]
            say(f"note: torch.compile does not work here ({str(error).splitlines()[0]}); training goes on without it")
            settings = replace(settings, compile=False)


def _tell(changes: list[Change], built: Recipe, settings: Settings, num_train: int, seconds: float) -> None:
    for change in changes:
        used, paper = (" ".join(map(str, v)) if isinstance(v, tuple) else v for v in (change.used, change.paper))
        say(f"  --{change.dial.replace('_', '-')} {used}  (paper: {paper}; {change.why})")
    optim = built.optim
    accumulated = -(-optim.batch_size // settings.micro_batch)
    say(
        f"  batch of {min(optim.batch_size, num_train)} images per update, {settings.micro_batch} at once"
        f"{f', {accumulated} times' if accumulated > 1 else ''}; peak learning rate {optim.peak_lr:.2e}; "
        f"{settings.precision} on {settings.device}"
    )
    say(f"training {built.epochs:g} epochs of {num_train:,} images: about {duration(seconds)}")


def _check_dials(load: Callable[..., Recipe], dials: Mapping[str, Any]) -> None:
    import difflib
    import inspect

    known = [p for p in inspect.signature(load).parameters if p != "modality"]
    for dial in dials:
        if dial not in known:
            close = difflib.get_close_matches(dial, known, n=3)
            raise ValueError(
                f"the recipe has no dial {dial!r}; "
                + (f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(known)}")
            )


def _check_model(built: Recipe) -> None:
    """What only the whole recipe can tell, before anything is written: shares that leave nothing to do."""
    for stage in built.stages[:1]:
        model = stage.build()
        from .records import Layout

        grid = built.encoder.grid
        cells = grid[0] * grid[1]
        spans = {m.name: slice(i * cells, (i + 1) * cells) for i, m in enumerate(built.encoder.modalities)}
        model.masker.counts(Layout(spans, grid))


def _check_broken(found: Inspection, source: Source, max_broken: float) -> None:
    looked = max(1, found.count)
    if len(found.unreadable) / looked > max_broken:
        told = "; ".join(f"{name}: {why}" for name, why in list(found.unreadable.items())[:10])
        raise ValueError(
            f"{len(found.unreadable)} of {looked} images of {source.address} cannot be read ({told});"
            " mend or remove them, or raise --max-broken"
        )


def _initial_weights(address: str) -> Mapping[str, torch.Tensor]:
    path = Path(address).expanduser()
    if path.is_dir():
        found, complaints = read_latest(path)
        if found is None:
            raise ValueError(f"{path} has no whole checkpoint to start from" + "".join(f"; {c}" for c in complaints))
        return found.model
    return read_weights(path)


def _data_facts(source: Source, train: Source, held_out: Source, built: Recipe, modality: Modality) -> dict[str, Any]:
    return {
        "address": source.address,
        "count": len(source),
        "train": len(train),
        "held_out": len(held_out),
        "image_size": list(built.view.image_size),
        "channels": modality.channels,
        "mean": list(modality.mean),
        "std": list(modality.std),
    }


def _model_facts(model: MaskedModel) -> dict[str, Any]:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    from .records import Layout
    from .targets import Pixels

    encoder = model.encoder
    cells = encoder.grid[0] * encoder.grid[1]
    spans = {m.name: slice(i * cells, (i + 1) * cells) for i, m in enumerate(encoder.modalities)}
    visible, predicted = model.masker.counts(Layout(spans, encoder.grid))
    return {
        "parameters": {"encoder": count(encoder), "decoder": count(model) - count(encoder)},
        "num_tokens": cells * len(spans),
        "num_visible": visible,
        "num_predicted": predicted,
        "norm_pix": any(isinstance(o.target, Pixels) and o.target.norm_pix for o in model.objectives),
    }


def _json_like(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _rounded(values: tuple[float, ...], least: float = 0.0) -> tuple[float, ...]:
    return tuple(max(least, round(float(v), 4)) for v in values)


def _command() -> str:
    return (
        shlex.join(["unveil", *sys.argv[1:]])
        if Path(sys.argv[0]).name in ("unveil", "__main__.py")
        else "unveil.pretrain(...)"
    )
