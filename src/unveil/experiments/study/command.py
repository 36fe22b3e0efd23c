"""`unveil study`: a question as arms, settings, seeds and protocols; runs that can be interrupted; one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...data.columns import Columns, split_columns, with_columns
from ...data.dense_layouts import open_dense
from ...data.detection.layouts import open_detection
from ...data.video_folders import open_videos
from ...evaluation.registry import Data
from ...modeling.public_vits import is_public_vit
from ...modeling.teachers.frozen import RANDOM
from ...recipes.options import accept_python_values
from ...reporting.study import value_of, write_study_report
from ...runs.atomic import make_folder, write_json
from ...runs.console import duration, log, user_path
from ...runs.executors import Local, Work, each_once, executor
from ..bench.estimate import MFU, hours_on
from ..scenes import SceneSource, parse, render_scenes
from ..scenes.coco import write_coco
from ..scenes.videos import write_videos
from .aggregate import as_text, gather, headlines, read_outcome, remarks, write
from .cost_estimate import estimate_costs, fit_epochs, store_epochs, with_epochs, with_minutes
from .design import ScaleName, Setting, Study
from .jobs import (
    BOXES,
    LABELLED_PIXELS,
    VIDEOS,
    Job,
    boxes_of,
    expand,
    images_of,
    is_scenes,
    measures_on,
    scenes_folder,
    slug,
    videos_of,
)
from .registry import check, load_study
from .schedule import Schedule, read_marker, write_jobs

SCENES = "scenes"  # the name that settings of rendered scenes begin with

FRAMES = 12  # of a rendered video


@accept_python_values
def study(
    name: str,
    *,
    scale: ScaleName | None = None,
    out: str | None = None,
    data: tuple[str, ...] = (),
    labelled: tuple[str, ...] = (),
    test_data: tuple[str, ...] = (),
    dense: tuple[str, ...] = (),
    videos: tuple[str, ...] = (),
    boxes: tuple[str, ...] = (),
    image_column: str | None = None,
    label_column: str | None = None,
    teacher: str | None = None,
    init_from: str | None = None,
    arms: tuple[str, ...] = (),
    seeds: int | None = None,
    minutes: float | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    device: str = "auto",
    on: str = "local",
    dry_run: bool = False,
) -> Path | None:
    """Answer a question by runs over seeds; returns its folder, None for a dry run and where others do the work.

    The same command continues a study that was stopped, on this machine or on several that share the folder: each
    takes runs that no other process has. A finished study is measured again only where its settings changed.

    scale: smoke (seconds, tests that it runs), cpu (3 hours on 2 cores), gpu (one card), paper (as published); by
        default cpu, or the first that the study has
    out: the folder of the study; by default runs/study-NAME-SCALE
    data: images to train on, in place of the study's: PATH, or SETTING=PATH for one of several settings
    labelled: images with labels to evaluate on, by default the same: PATH or SETTING=PATH
    test_data: images to test on: PATH or SETTING=PATH
    dense: images with a label per pixel, for studies that measure segmentation: PATH or SETTING=PATH
    videos: videos in the layout of DAVIS, for studies that measure video segmentation: PATH or SETTING=PATH
    boxes: images with boxes, such as COCO, for studies that measure detection: PATH or SETTING=PATH
    image_column: the column of Parquet files that holds the images, where there are several
    label_column: the column of Parquet files that holds the classes, whatever its name
    teacher: the teacher of all arms that set none: a file, a folder, a run, a name on the hub
    init_from: the weights that all arms start from that set none, such as the public checkpoint of multimae-continue
    arms: names of the arms that take part, in place of the scale's own; the baseline is one of them
    seeds: the number of seeds, in place of the scale's own
    minutes: training time of every run, in place of the scale's epochs; each arm's are fitted to it once
    limit: evaluate on at most this many images of each source
    jobs: processes at a time; by default one for each GPU, or one; of slurm one for each run, of ray as many as have
        room
    device: cpu, cuda, mps; auto takes the best
    on: where the runs are made: local, slurm (an array of jobs) or ray, or with options,
        slurm:partition=gpu,time=12:00:00,gpus_per_node=1 or ray:address=HOST:6379,gpus=1
    dry_run: list the runs and the cost of training, or with on the script and its tasks, and stop
    """
    given = dict(locals())
    where = executor(on)
    chosen = load_study(name)
    first: ScaleName = "cpu" if "cpu" in chosen.scales else next(iter(chosen.scales))
    at = first if scale is None else scale
    for flag, number in {"seeds": seeds, "jobs": jobs, "limit": limit}.items():
        if number is not None and number < 1:
            raise ValueError(f"--{flag} {number}: a whole number, 1 or more, is needed")
    chosen = with_overrides(chosen, at, teacher=teacher, init_from=init_from, arms=arms, seeds=seeds, limit=limit)
    check(chosen, at)
    own = {"data": data, "labelled": labelled, "test_data": test_data, "dense": dense}
    chosen = with_data(chosen, at, **own, videos=videos, boxes=boxes)
    chosen = naming_columns(chosen, at, image_column, label_column)
    title = Path(name).stem
    folder = user_path(out) if out else Path("runs") / f"study-{slug(title)}-{at}"
    again = {k: v for k, v in given.items() if k != "name"} | {"scale": at, "out": str(folder)}
    chosen = with_minutes(chosen, at, minutes)
    if not isinstance(where, Local):  # each process runs this command in this folder
        work = Work(study, "study", name, again | {"on": "local", "jobs": None, "dry_run": False})
        where.start(work, len(expand(chosen, at, folder)), jobs, dry_run)
        if dry_run or not where.is_awaited:
            return None
        jobs = None  # the runs are there: what is left is the table
    epochs = {} if chosen.scales[at].minutes is None else fit_epochs(chosen, at, folder, device)
    chosen = with_epochs(chosen, epochs)
    print(_plan(chosen, at, title, device))
    if dry_run:
        return None
    check_weights(chosen, at)
    check_maps(chosen, at)
    check_videos(chosen, at)
    expand(chosen, at, folder)  # raises its errors before anything is written
    _begin(folder, title, at)
    if epochs:
        chosen = with_epochs(chosen, store_epochs(epochs, chosen.scales[at], folder))
    expanded = expand(chosen, at, folder)
    write_jobs(folder, expanded, device)
    render_settings(chosen, at, folder)
    schedule = Schedule(folder, expanded, jobs)
    if schedule.done:
        log(f"{len(schedule.done)} of {len(expanded)} runs are there already")
    try:
        schedule.run(lambda job: _first_metrics(job, folder))
    except KeyboardInterrupt:
        log(f"the study is continued by: {Work(study, 'study', name, again)}")
        raise
    outcome = {"study": title, **gather(chosen, at, expanded, folder, schedule.failed)}
    outcome["remarks"] = remarks(outcome)
    outcome["headlines"] = headlines([row["metric"] for row in outcome["rows"]])
    write(outcome, folder)
    report = write_study_report(folder)
    print(as_text(outcome))
    print(f"report: {report}")
    if schedule.failed:
        raise ValueError(
            f"{len(schedule.failed)} of {len(expanded)} runs failed, and the table is of the others; the same command"
            " tries them again"
        )
    return folder


def with_overrides(
    study: Study,
    at: ScaleName,
    *,
    teacher: str | None = None,
    init_from: str | None = None,
    arms: Sequence[str] = (),
    seeds: int | None = None,
    limit: int | None = None,
) -> Study:
    """The study with these in place of the scale's own. Raises FileNotFoundError for weights that do not exist."""
    if at not in study.scales:
        return study  # `check` raises the error
    scale = study.scales[at]
    if teacher is not None:
        address = teacher if teacher == RANDOM else weights_at(teacher, "--teacher")
        scale = replace(scale, options={**scale.options, "teacher": address})
    if init_from is not None:
        address = weights_at(init_from, "--init-from")
        is_run = (Path(address) / "run.json").exists()  # which stores its own length; a file counts as one of the scale
        length = None if is_run else scale.options.get("epochs")
        scale = replace(scale, options={**scale.options, "init_from": address, "init_epoch": length})
    if arms:
        scale = replace(scale, arms=tuple(arms))
    if seeds is not None:
        scale = replace(scale, seeds=tuple(range(seeds)))
    if limit is not None:
        scale = replace(scale, evaluation={**scale.evaluation, "limit": limit})
    return replace(study, scales={**study.scales, at: scale})


def weights_at(address: str, flag: str) -> str:
    """An address of weights, a path without `~`. Raises FileNotFoundError where there are none."""
    path = user_path(address)
    if not path.exists() and not is_public_vit(address):
        raise FileNotFoundError(f"{flag} {address}: there is no such file, folder or name on the hub")
    return str(path) if path.exists() else address


def check_weights(study: Study, at: ScaleName) -> None:
    """Raise FileNotFoundError for weights that the scale names, as a published one does, and that are not here."""
    address = study.scales[at].options.get("init_from")
    if isinstance(address, str) and not user_path(address).exists() and not is_public_vit(address):
        raise FileNotFoundError(f"the arms start from {address}, which is not here; give its --init-from FILE")


def check_maps(study: Study, at: ScaleName) -> None:
    """Raise ValueError for a setting that lacks the images with labels per pixel, or boxes, that the study measures."""
    readers: dict[Data, tuple[str, Callable[[str], object], str]] = {
        LABELLED_PIXELS: ("dense", open_dense, "ADE20K or CamVid"),
        BOXES: ("boxes", open_detection, "COCO"),
    }
    for kind, (name, opened, example) in readers.items():
        for setting in study.scales[at].settings if measures_on(study.scales[at], kind) else ():
            address = getattr(setting, name) or images_of(setting)
            try:
                if not is_scenes(address):
                    opened(address)
            except (ValueError, FileNotFoundError) as error:
                hint = f"give --{name} {setting.name}=FOLDER, such as {example}"
                raise ValueError(f"the study measures {kind}: {error}; {hint}") from error


def check_videos(study: Study, at: ScaleName) -> None:
    """Raise ValueError for a setting without videos where the study measures on them."""
    for setting in study.scales[at].settings if measures_on(study.scales[at], VIDEOS) else ():
        if setting.videos is None:
            raise ValueError(f"the study measures videos with masks; give --videos {setting.name}=DAVIS")
        if not is_scenes(setting.videos):
            open_videos(setting.videos)


def with_data(study: Study, scale: ScaleName, **given: Sequence[str]) -> Study:
    """The study with the user's own images: each word is PATH, for the only or the first setting, or SETTING=PATH.

    The keywords are fields of a setting: data, labelled, test_data, dense, videos, boxes. Settings without images are
    left out where others have some, with a message; a setting named after its scenes is renamed after the images that
    replace them. Raises ValueError for an unknown setting.
    """
    at = study.scales[scale]
    settings = {setting.name: setting for setting in at.settings}
    for what, words in given.items():
        for word in words:
            place, columns = split_columns(word)
            name, equals, path = place.partition("=")
            if not equals or name not in settings:
                if equals and not user_path(place).exists() and not word.startswith(SCENES):
                    raise ValueError(f"{word}: there is no setting {name!r}; there are {', '.join(settings)}")
                name, path = at.settings[0].name, place
            own: dict[str, Any] = {what: with_columns(path, columns.image, columns.label)}
            if what == "data":  # scenes are no test of other images
                before = {field: getattr(settings[name], field) for field in ("labelled", "test_data")}
                own |= {field: None for field, images in before.items() if images and is_scenes(images)}
            settings[name] = replace(settings[name], **own)
    with_images = [s for s in settings.values() if s.data is not None]
    for setting in settings.values() if with_images else ():
        if setting.data is None:
            log(f"setting {setting.name} is left out: it has no images; --data {setting.name}=FOLDER includes it")
    used = tuple(map(_renamed, with_images or settings.values()))
    return replace(study, scales={**study.scales, scale: replace(at, settings=used)})


def naming_columns(study: Study, scale: ScaleName, image: str | None, label: str | None) -> Study:
    """The study with these columns of the tables in its settings. Raises ValueError where no setting has images."""
    if image is None and label is None:
        return study
    at = study.scales[scale]

    def named(address: str | None, label: str | None = None) -> str | None:
        return address if address is None or is_scenes(address) else with_columns(address, image, label)

    if all(setting.data is None or is_scenes(setting.data) for setting in at.settings):
        raise ValueError(f"{Columns(image, label).flags} names a column of --data; give both, or neither")
    settings = tuple(
        replace(s, data=named(s.data), labelled=named(s.labelled or s.data, label), test_data=named(s.test_data, label))
        for s in at.settings
    )
    return replace(study, scales={**study.scales, scale: replace(at, settings=settings)})


def _renamed(setting: Setting) -> Setting:
    """A setting of scenes whose images are others, named after these: a file's with its folder's name before it."""
    if setting.data is None or is_scenes(setting.data) or not setting.name.startswith(SCENES):
        return setting
    path = user_path(split_columns(setting.data)[0]).absolute()
    own = f"{path.parent.name}/{path.stem}" if path.is_file() else path.name
    return replace(setting, name=own + setting.name.removeprefix(SCENES))


def _begin(folder: Path, title: str, at: ScaleName) -> None:
    """Make the folder. Raises ValueError where it holds something other than this study."""
    marker, before = {"study": title, "scale": at}, read_marker(folder, "study")
    if before and before != marker:
        raise ValueError(f"{folder} holds the study {before['study']} at scale {before['scale']}; give another --out")
    make_folder(folder)
    write_json(folder / "study.json", marker)


def render_settings(study: Study, at: ScaleName, folder: Path) -> None:
    """Render the scenes that runs read, once."""
    for setting in study.scales[at].settings:
        if measures_on(study.scales[at], VIDEOS) and setting.videos is not None and is_scenes(setting.videos):
            rendered = partial(write_videos, parse(setting.videos), FRAMES)
            _render_once(Path(videos_of(setting, folder)), folder, rendered)
        boxes = setting.boxes or setting.data
        if measures_on(study.scales[at], BOXES) and boxes is not None and is_scenes(boxes):
            _render_once(Path(boxes_of(setting, folder)), folder, partial(_write_boxes, parse(boxes)))
    settings, is_dense = study.scales[at].settings, measures_on(study.scales[at], LABELLED_PIXELS)
    addresses = [a for s in settings for a in (s.data, s.labelled, s.test_data, s.dense if is_dense else None)]
    for address in dict.fromkeys(a for a in addresses if a is not None and is_scenes(a)):
        _render_once(scenes_folder(address, folder), folder, partial(render_scenes, parse(address)))


def _write_boxes(scenes: SceneSource, place: Path) -> None:
    """Scenes with boxes and masks, and a fourth as many of the next seed to test on."""
    write_coco(scenes, replace(scenes, count=max(1, len(scenes) // 4), seed=scenes.seed + 1), place)


def _render_once(place: Path, folder: Path, render: Callable[[Path], None]) -> None:
    make_folder(place.parent)
    name = f"{place.parent.name}-{place.name}"
    each_once([name], folder / "locks", lambda _: place.exists(), lambda _: render(place))


def _first_metrics(job: Job, folder: Path) -> str:
    metrics = read_outcome(job, folder)["metrics"]
    return ", ".join(f"{name} {value_of(value, name)}" for name, value in [*metrics.items()][:3])


def _plan(study: Study, at: ScaleName, title: str, device: str) -> str:
    scale, costs = study.scales[at], estimate_costs(study, at, device)
    lines = [
        f"  {cost.setting}: {cost.arm}: {cost.runs} run{'s' if cost.runs > 1 else ''} of {cost.images:,.0f} images,"
        f" {cost.flops:.2g} FLOPs, about {duration(cost.seconds)} here, each"
        for cost in costs
    ]
    flops = math.fsum(cost.runs * cost.flops for cost in costs)
    seconds = math.fsum(cost.runs * cost.seconds for cost in costs)
    total = (
        f"{sum(cost.runs for cost in costs)} runs, seeds {', '.join(map(str, scale.seeds))}, measured by"
        f" {', '.join(scale.protocols) or 'nothing'}: training takes {flops:.2g} FLOPs, about {duration(seconds)} on"
        f" this device one after another, by a step of {study.baseline} timed just now; measuring comes on top"
    )
    times = " or ".join(f"{duration(3600 * hours_on(gpu, flops))} on one {gpu}" for gpu in ("A100", "H100"))
    on_gpu = f"by formula, at {MFU:.0%} of its peak (a small ViT reaches less), training takes {times}"
    return "\n".join([f"{title}, scale {at}: {study.question}", *lines, total, on_gpu])
