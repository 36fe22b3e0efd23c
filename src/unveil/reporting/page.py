"""The report of one or several runs: an HTML document that needs no network, its sections in order."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..runs.atomic import make_folder, write_text
from ..runs.console import user_path
from .analyses import attention_over_time, attention_tables, block_by_block, cheaper_guidance, layers
from .by_class import classes
from .clips import segmented_videos
from .detections import detections
from .embeddings import data_map, data_oddities, patch_features
from .galleries import (
    across_modalities,
    attention_maps,
    beside_baselines,
    guidance,
    nearest_neighbours,
    other_masks,
)
from .live import live_application, serve
from .markup import Markup, counted, fragment, remark, tag
from .overview import Summary, more_looks, overview, summarised
from .run_files import is_run, runs_below
from .run_record import read_run
from .scores import evaluations, over_training
from .sections import Runs, broken_files, curves, environment, health, key_figures, label_free, what_was_run
from .side_by_side import comparison
from .style import LIVE, LOGO, SCRIPT, STYLE

SECTIONS: tuple[Callable[[Runs], Markup | None], ...] = (
    health, overview, key_figures, beside_baselines, other_masks, more_looks, across_modalities, attention_maps,
    patch_features, nearest_neighbours, data_map, data_oddities, guidance, over_training, curves, label_free,
    comparison, evaluations, classes, detections, segmented_videos, attention_over_time, attention_tables,
    cheaper_guidance, layers, block_by_block, what_was_run, broken_files, environment,
)  # fmt: skip

PICTURED = (  # sections with pictures of each run, of which a page on many runs shows those of the first ones
    other_masks, more_looks, across_modalities, attention_maps, patch_features, nearest_neighbours, data_map,
    data_oddities, block_by_block,
)  # fmt: skip
MOST_BYTES = 5_000_000  # of a page, where fewer runs with pictures make it smaller


def write_report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | Path | None = None,
    *,
    watch: bool = False,
    port: int = 0,
    summary: Summary | None = None,
) -> Path:
    """Write one page about one or several runs, which needs no network; returns its path.

    runs: folders that `unveil pretrain` wrote, or folders of such: all runs below one
    out: a file or a folder; report.html in the first folder given where there is none
    watch: serve the page at an address of this machine until Ctrl-C; it follows runs that train, and is written then
    port: of that address; 0 is any free one
    summary: what the page says first, before the verdicts on the runs; by default these, and the main measures

    FileNotFoundError or ValueError where a folder is missing or is no run.

    >>> import unveil
    >>> page = unveil.report("runs/a")
    >>> str(page), page.read_text().startswith("<!doctype html>")
    ('runs/a/report.html', True)
    """
    given = [os.fspath(run) for run in ([runs] if isinstance(runs, (str, os.PathLike)) else runs)]
    first, folders = _folders(given)
    text = _composed(folders, first, summary)
    path = user_path(out) if out is not None else first / "report.html"
    path = path / "report.html" if path.is_dir() else path
    if watch:
        application = live_application(
            lambda: _folders(given)[1], lambda: _composed(_folders(given)[1], first, summary, is_live=True)
        )
        serve(application, port)
        text = _composed(_folders(given)[1], first, summary)
    make_folder(path.parent)
    write_text(path, text)
    return path


def _composed(folders: Sequence[Path], first: Path, summary: Summary | None, is_live: bool = False) -> str:
    """The page on these run folders; `first` names that of many."""
    records = _with_unique_names([read_run(folder) for folder in folders])
    title, under, sections = _title(records, first), _under(records), SECTIONS
    if summary is not None:
        title, under = summary.title, summary.under
        sections = (
            lambda runs: summarised(runs, summary),
            health,
            *(s for s in SECTIONS if s not in (health, overview)),
        )
    main = _within(records, sections)
    return document("unveil report", title, title, under, *main, is_live=is_live)


def _within(runs: Runs, sections: Sequence[Callable[[Runs], Markup | None]]) -> list[Markup | None]:
    """The sections in their order; those with pictures of fewer runs where the page would be too large."""
    main = [section(runs) for section in sections]
    pictured = [place for place, section in enumerate(sections) if section in PICTURED]
    for most in range(len(runs) - 1, 1, -1):
        if sum(len(one.encode()) for one in main if one) <= MOST_BYTES:
            break
        for place in pictured:
            main[place] = sections[place](runs[:most])
        names = ", ".join(run.name for run in runs[most:])
        note = remark(f"Below are pictures of the first {most} runs, so that this page stays small; not of {names}.")
        main[pictured[0]] = fragment([note, *([main[pictured[0]]] if main[pictured[0]] else [])])
    return main


def _folders(runs: Sequence[str | Path]) -> tuple[Path, list[Path]]:
    """The first of the folders given, and the run folders: each given one, or all below it where it is none."""
    given = [user_path(run) for run in runs]
    if not given:
        raise ValueError("a report needs at least one run folder; got none")
    folders = [folder for one in given for folder in ([one] if is_run(one) else runs_below(one) or [one])]
    return given[0], list({folder.resolve(): folder for folder in folders}.values())


def _title(runs: Runs, folder: Path) -> str:
    """The names of the runs, of many that of the folder they lie in."""
    return ", ".join(run.name for run in runs) if len(runs) <= 4 else folder.resolve().name


def _with_unique_names(runs: Runs) -> Runs:
    """Runs whose folders share a name get the parent's name in front."""
    uses = Counter(run.name for run in runs)
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}") if uses[run.name] > 1 else run for run in runs
    ]


def _under(runs: Runs) -> str:
    """The line under the title: what was pretrained on what, and when."""
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    run = runs[0]
    recipe = " ".join(filter(None, (run.text("recipe") or "a run", run.text("options", "size"))))
    data, when = run.text("data", "address"), run.text("started")[:16].replace("T", " ")
    epochs = counted(run.epochs_done, "epoch") if run.steps else ""
    return " · ".join(filter(None, (recipe + (f" on {data}" if data else ""), epochs, when)))


SHORT = {  # titles of sections that are too long for the bar, by anchor
    "predictions-beside-a-baseline": "Predictions", "one-image-under-several-masks": "Masks",
    "nearest-neighbours": "Neighbours", "map-of-the-images": "Map", "near-duplicates-and-outliers": "Duplicates",
    "signals-that-need-no-labels": "Signals",
}  # fmt: skip
_TITLED = re.compile(r'<section[^>]* id="([a-z0-9-]+)" data-title="([^"]+)"')


def _navigation(main: Sequence[object]) -> Markup | None:
    """Links to the titled sections of a page, in a bar that stays in sight; None where there are few."""
    titled = [match for one in main if isinstance(one, Markup) for match in _TITLED.findall(one)]
    if len(titled) < 3:
        return None
    links = [tag("a", Markup(SHORT.get(anchor, title)), href=f"#{anchor}") for anchor, title in titled]
    return tag("nav", tag("a", "Verdict", href="#verdict"), *links, aria_label="Sections")


def document(kind: str, name: str, heading: object, under: object, *main: object, is_live: bool = False) -> str:
    """A page as text: `kind` and `heading` at its top, `under` the line below them, `name` in the browser's title.

    One that `is_live` asks the server it came from for news.
    """
    script = SCRIPT + (LIVE if is_live else "")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    policy += "; connect-src 'self'" if is_live else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · unveil"),
        tag("style", Markup(STYLE)),
    )
    titles = tag("div", tag("p", kind, class_="kind"), tag("h1", heading), tag("p", under, class_="under"))
    header = tag("header", Markup(LOGO), titles)
    body = tag("body", header, _navigation(main), tag("main", *main), tag("script", Markup(script)))
    return fragment([Markup("<!doctype html>\n"), tag("html", head, body, lang="en")])
