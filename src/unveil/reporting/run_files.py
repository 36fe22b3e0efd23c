"""The files of a run folder that a stranger may have made: regular ones that lie in it are read, and no others."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

NAN = math.nan


def number(value: Any) -> float:
    """The value as a float; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return NAN


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list; none where the value is no list."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def is_run(folder: Path) -> bool:
    """Whether a folder has what a run begins with."""
    return (folder / "run.json").is_file() or (folder / "metrics.jsonl").is_file()


_DEEPEST, _MOST_RUNS = 4, 200  # folders below one that is searched for runs, and runs that are compared


def runs_below(folder: Path) -> list[Path]:
    """The run folders below one, in the order of their names; none inside of runs, and none that links lead to.

    ValueError where there are more than 200.
    """
    runs: list[Path] = []
    level = [folder] if folder.is_dir() else []
    for _ in range(_DEEPEST):
        below = [p for one in level for p in sorted(one.iterdir()) if p.is_dir() and not p.is_symlink()]
        runs += [p for p in below if is_run(p)]
        level = [p for p in below if not is_run(p) and not p.name.startswith(".")]
        if len(runs) > _MOST_RUNS:
            raise ValueError(f"{folder} holds more than {_MOST_RUNS} runs; give a folder below it, or the runs")
    return sorted(runs)


def check_own(path: Path) -> None:
    """Raise OSError for a file that is none, such as a pipe, or that through a link lies outside of its run folder."""
    if not path.is_file():
        raise FileNotFoundError(path) if not path.exists() else OSError("it is no regular file")
    run = next(filter(is_run, path.parents), path.parent)
    if not os.path.realpath(path).startswith(os.path.realpath(run).rstrip(os.sep) + os.sep):
        raise OSError("it is a link that leads out of the run folder")


def read_json(path: Path, remarks: list[str], needed: bool = False) -> Any:
    """The content of a JSON file; None, with a remark, for one that cannot be read."""
    try:
        check_own(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            remarks.append(f"{path.name} is missing.")
    except (OSError, ValueError, RecursionError) as error:
        remarks.append(f"{path.name} could not be read: {error}.")
    return None


def read_lines(
    path: Path, remarks: list[str], choose: Callable[[list[str]], list[str]] = list
) -> Iterator[Mapping[str, Any]]:
    """The lines of metrics.jsonl that can be read, of those that `choose` takes; remarks say which cannot."""
    try:
        check_own(path)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        remarks.append("metrics.jsonl is missing: nothing was logged yet.")
        return
    except OSError as error:
        remarks.append(f"metrics.jsonl could not be read: {error}.")
        return
    unread = 0
    for line in choose(list(filter(str.strip, lines))):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            unread += 1
            continue
        if isinstance(entry, Mapping) and math.isfinite(number(entry.get("step"))):
            yield entry
    if unread:
        remarks.append(f"metrics.jsonl: {unread} line{'s' if unread > 1 else ''} could not be read (cut off?).")


def picture_in(folder: Path, name: Any) -> Path | None:
    """A picture by its name in an index; a name that leads out of the folder is no picture."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None
