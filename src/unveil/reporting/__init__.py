"""The report of one or several runs: read from their folders, written as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runs.atomic import write_text
from .page import page
from .run_record import RunRecord, read_run

__all__ = ["write_report"]


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one page about one or several runs, which needs no network; returns its path.

    runs: folders that `unveil pretrain` wrote
    out: a file or a folder; report.html in the first run's folder where not given

    FileNotFoundError or ValueError where a folder is missing or is no run.
    """
    folders = list({Path(run).resolve(): Path(run) for run in runs}.values())
    if not folders:
        raise ValueError("a report needs at least one run folder; got none")
    records = _with_unique_names([read_run(folder) for folder in folders])
    path = Path(out) if out is not None else folders[0] / "report.html"
    if path.is_dir():
        path = path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(records))
    return path


def _with_unique_names(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs whose folders share a name get the parent's name in front."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]
