"""`unveil study`: a question as arms, settings, seeds and protocols; runs that survive anything; one table."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...reporting.intervals import value_of
from ...reporting.study import write_study_report
from ...runs.atomic import write_json
from ...runs.console import duration, log
from ...runs.folder import check_writable
from ...runs.lock import hold
from ..scene_files import render_scenes
from ..scenes import parse
from .aggregate import gather, read_outcome
from .checking import check
from .cost_estimate import RunCost, estimate_costs
from .design import ScaleName, Study
from .jobs import Job, expand, is_scenes, scenes_folder, slug
from .overrides import check_numbers, with_data, with_overrides
from .registry import load_study
from .schedule import Schedule, write_jobs
from .tables import as_text, headlines, remarks, write
from .time_budget import fit_epochs, store_epochs, with_epochs, with_minutes

MARKER = "study.json"


def study(
    name: str,
    *,
    scale: ScaleName | None = None,
    out: str | None = None,
    data: tuple[str, ...] = (),
    labelled: tuple[str, ...] = (),
    test_data: tuple[str, ...] = (),
    teacher: str | None = None,
    arms: tuple[str, ...] = (),
    seeds: int | None = None,
    minutes: float | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> Path | None:
    """Answer a question by runs over seeds; returns the folder of the study, None for a dry run.

    The same command goes on with a study that was stopped, on this machine or on several that share the folder: each
    takes runs that nobody else has. A study that is done is measured again only where its settings changed.

    scale: smoke (seconds, shows that it runs), cpu (3 hours on 2 cores), gpu (one card), paper (as published); by
        default cpu, or the first that the study has
    out: the folder of the study; by default runs/study-NAME-SCALE
    data: images to learn from, in place of the study's: PATH, or SETTING=PATH for one of several settings
    labelled: images with labels to measure on, by default the same: PATH or SETTING=PATH
    test_data: images to test on: PATH or SETTING=PATH
    teacher: the teacher of all arms that name none of their own: a file, a folder, a run, a name on the hub
    arms: names of the arms that take part, in place of the scale's own; the baseline is one of them
    seeds: how many seeds, in place of the scale's own
    minutes: training time of every run, in place of the scale's epochs; each arm's are fitted to it once
    limit: measure on at most so many images of each source
    jobs: processes at a time; by default one for each GPU, or one
    device: cpu, cuda, mps; auto takes the best
    dry_run: list the runs and what training costs, and stop
    """
    asked = load_study(name)
    first: ScaleName = "cpu" if "cpu" in asked.scales else next(iter(asked.scales))
    at = first if scale is None else scale
    check_numbers(seeds=seeds, jobs=jobs, limit=limit)
    asked = with_overrides(asked, at, teacher=teacher, arms=arms, seeds=seeds, limit=limit)
    check(asked, at)
    asked = with_data(asked, at, data=data, labelled=labelled, test_data=test_data)
    title = Path(name).stem
    folder = Path(out).expanduser() if out else Path("runs") / f"study-{slug(title)}-{at}"
    asked = with_minutes(asked, at, minutes)
    epochs = {} if asked.scales[at].minutes is None else fit_epochs(asked, at, folder, device)
    asked = with_epochs(asked, epochs)
    print(_plan(asked, at, title, estimate_costs(asked, at, device)))
    if dry_run:
        return None
    expand(asked, at, folder)  # which is refused before anything is written
    _begin(folder, title, at)
    if epochs:
        asked = with_epochs(asked, store_epochs(epochs, asked.scales[at], folder))
    wanted = expand(asked, at, folder)
    write_jobs(folder, wanted, device)
    _render(asked, at, folder)
    schedule = Schedule(folder, wanted, jobs)
    if schedule.done:
        log(f"{len(schedule.done)} of {len(wanted)} runs are there already")
    try:
        schedule.run(lambda job: _told(job, folder))
    except KeyboardInterrupt:
        lists = {"data": data, "labelled": labelled, "test-data": test_data, "arms": arms}
        others = {"teacher": teacher, "seeds": seeds, "minutes": minutes, "limit": limit, "jobs": jobs}
        others["device"] = None if device == "auto" else device
        log(f"the study goes on from here: {_again(name, at, folder, lists, others)}")
        raise
    outcome = {"study": title, **gather(asked, at, wanted, folder, schedule.failed)}
    outcome["remarks"] = remarks(outcome)
    outcome["headlines"] = headlines([row["metric"] for row in outcome["rows"]])
    write(outcome, folder)
    report = write_study_report(folder)
    print(as_text(outcome))
    print(f"report: {report}")
    if schedule.failed:
        raise ValueError(
            f"{len(schedule.failed)} of {len(wanted)} runs failed, and the table is of the others; the same command"
            " tries them again"
        )
    return folder


def _begin(folder: Path, title: str, at: ScaleName) -> None:
    """Make the folder. Raises ValueError where it holds something else than this study."""
    check_writable(folder)
    mine = {"study": title, "scale": at}
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(f"{folder} holds files that are no study; give another --out")
        before = json.loads((folder / MARKER).read_text())
        if before != mine:
            told = f"the study {before['study']} at scale {before['scale']}"
            raise ValueError(f"{folder} holds {told}; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, mine)


def _render(asked: Study, at: ScaleName, folder: Path) -> None:
    """Draw the scenes that runs read, once."""
    settings = asked.scales[at].settings
    addresses = [a for s in settings for a in (s.data, s.labelled, s.test_data) if a is not None and is_scenes(a)]
    for address in dict.fromkeys(addresses):
        place = scenes_folder(address, folder)
        place.parent.mkdir(exist_ok=True)
        while not place.exists():  # another process may be drawing them
            with hold(folder / "locks" / place.name) as other:
                if other is None and not place.exists():
                    render_scenes(parse(address), place)
            time.sleep(0.0 if place.exists() else 1.0)


def _told(job: Job, folder: Path) -> str:
    """The first figures of a run that has just been measured."""
    found = read_outcome(job, folder)["metrics"]
    return ", ".join(f"{name} {value_of(value, name)}" for name, value in [*found.items()][:3])


def _plan(asked: Study, at: ScaleName, title: str, found: Sequence[RunCost]) -> str:
    """What is going to be done, and what it costs."""
    scale = asked.scales[at]
    lines = [
        f"  {cost.setting}: {cost.arm}: {cost.runs} run{'s' if cost.runs > 1 else ''} of {cost.images:,.0f} images,"
        f" {cost.flops:.2g} FLOPs, about {duration(cost.seconds)} here, each"
        for cost in found
    ]
    flops = math.fsum(cost.runs * cost.flops for cost in found)
    seconds = math.fsum(cost.runs * cost.seconds for cost in found)
    runs = sum(cost.runs for cost in found)
    total = (
        f"{runs} runs, seeds {', '.join(map(str, scale.seeds))}, measured by {', '.join(scale.protocols) or 'nothing'}:"
        f" training takes {flops:.2g} FLOPs, about {duration(seconds)} on this device one after another, by a step of"
        f" {asked.baseline} timed just now; measuring comes on top"
    )
    return "\n".join([f"{title}, scale {at}: {asked.question}", *lines, total])


def _again(
    name: str, at: ScaleName, folder: Path, lists: Mapping[str, Sequence[str]], others: Mapping[str, object]
) -> str:
    words = ["unveil", "study", name, "--scale", at, "--out", str(folder)]
    for flag, values in lists.items():
        words += [f"--{flag}", *values] if values else []
    for flag, value in others.items():
        words += [f"--{flag}", str(value)] if value is not None else []
    return shlex.join(words)
