"""The run folder: the interface between the rooms. What a run is, whether to begin or continue it, its journal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .checkpoint import write_json

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


class RunFolder:
    """A folder that one training process writes: `run.json`, `metrics.jsonl`, checkpoints, pictures, evaluations."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: IO[str] | None = None
        self._complained = False

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says; empty when there is none."""
        return read_facts(self.path)

    def write_facts(self, **facts: Any) -> None:
        """Add to `run.json`, or replace what it says."""
        write_json(self.path / "run.json", {**self.facts, **facts})

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the journal. A disk that is full costs the line, not the run."""
        try:
            with (self.path / "metrics.jsonl").open("a") as journal:
                journal.write(json.dumps(line) + "\n")
        except OSError as error:
            if not self._complained:
                print(f"warning: metrics cannot be written ({error}); training goes on", file=sys.stderr)
            self._complained = True

    def lock(self) -> None:
        """Keep other processes out for as long as this one lives. Raises ValueError when one is in."""
        if fcntl is None:
            return
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another process is training in {self.path}; wait for it, or give another --out"
            ) from error

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            (self.path / ".lock").unlink(missing_ok=True)
            self._lock = None


def read_facts(path: Path) -> dict[str, Any]:
    """What a run's `run.json` says; empty when there is none. Raises ValueError when it is damaged."""
    try:
        return json.loads((path / "run.json").read_text())
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / 'run.json'} is damaged ({error}); give another --out, or --overwrite") from error


def choose_folder(out: str | None, recipe: str) -> Path:
    """The folder that was asked for, or the next free `runs/<recipe>-<n>`."""
    if out is not None:
        return Path(out).expanduser()
    n = 1
    while (Path("runs") / f"{recipe}-{n}").exists():
        n += 1
    return Path("runs") / f"{recipe}-{n}"


def check_writable(path: Path) -> None:
    """Raise PermissionError or NotADirectoryError when a folder cannot be made or written; writes nothing."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"--out {path} cannot be made: {place} is a file; give another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {path} cannot be written: no permission in {place}; give another folder")


def is_continuation(path: Path, asked: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds an unfinished run of just this recipe and these dials, which is then continued.

    Raises ValueError when it holds something else, and says what differs.
    """
    if overwrite or not path.exists() or not any(path.iterdir()):
        return False
    facts = read_facts(path)
    if not facts:
        raise ValueError(f"{path} holds files that are no run; give another --out, or --overwrite to replace them")
    before = facts.get("asked", {})
    differs = sorted(k for k in {*before, *asked} if before.get(k) != asked.get(k))
    if differs:
        told = "; ".join(f"{k}: {before.get(k)!r} then, {asked.get(k)!r} now" for k in differs)
        raise ValueError(f"{path} holds another run ({told}); give another --out, the same dials, or --overwrite")
    if facts.get("status") == "finished":
        raise ValueError(f"{path} holds this run, finished; evaluate it, give another --out, or --overwrite")
    return True
