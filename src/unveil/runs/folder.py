"""The run folder: its place, its lock, its metrics, who is told of them, and the run in it."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt64

from .atomic import sync, write_json, write_text
from .checkpoint import remove_partial_files
from .checkpoint_state import REPLAY_FOLDER, WEIGHTS_FOLDER, folders, lost, read_state
from .console import log, printable, user_path
from .lock import RUN_LOCK, hold
from .regular_files import read_text
from .run_config import current_entries, current_options, read_metadata

OWN_RECIPE = "recipe.py"  # the user's own recipe file, as it was when the run began
OWN_SCORE = "masking.py"  # the source of a score of his own, likewise
TRAINED_IMAGES = "trained_images.u64"  # an identity of 8 bytes for each image that the run is trained on
TRAINED = (  # what training writes to without replacing it as a whole
    "checkpoints",
    WEIGHTS_FOLDER,
    REPLAY_FOLDER,
    "metrics.jsonl",
    "pictures",
    "tensorboard",
    "wandb",
)
RESULTS = ("analysis", "eval", "features", "heads", "outcomes")  # folders that commands on a stored run write
_RUN_FILES = (  # what a run writes, and all that --overwrite removes; run.json first: without it the rest is no run
    *("run.json", "metrics.jsonl", "broken.json", "nonfinite.json", "inspection.json", OWN_RECIPE),
    *(OWN_SCORE, TRAINED_IMAGES),
    *("config.yaml", "report.html"),
    *(
        "checkpoints",
        "kept",
        "replay",
        "pictures",
        "eval",
        "features",
        "heads",
        "outcomes",
        "analysis",
        "look.png",
        "tensorboard",
        "wandb",
        "trackers.json",
    ),
)


class FolderMovedError(ValueError):
    """The run folder was renamed, removed or replaced while a process trained in it."""


class FinishedError(ValueError):
    """The folder holds this run, finished: nothing is left to do."""


class LongerError(ValueError):
    """The folder holds this run, finished, and now it is to have other epochs, or minutes."""


class Listener(Protocol):
    """What is told of the lines and checkpoints that a run writes."""

    def line(self, line: Mapping[str, Any]) -> None: ...
    def saved(self, step: int, folder: Path) -> None: ...


class RunFolder:
    """A folder that one training process writes: `run.json`, `metrics.jsonl`, checkpoints, pictures, evaluations."""

    def __init__(self, path: Path):
        self.path = path
        self.listener: Listener | None = None  # gets every line of metrics, if there is one
        self._complained: set[str] = set()
        self._written: dict[str, Any] | None = None
        self._place: tuple[int, int] | None = None  # device and inode, of a folder that this process has locked

    def check_place(self) -> None:
        """Raise FolderMovedError where the locked folder does not lie under its path any more."""
        if self._place is not None and _place_of(self.path) != self._place:
            step = (self._written or {}).get("last_checkpoint") or 0
            raise FolderMovedError(
                f"{self.path} was renamed or removed while it was trained in, so this run stops at its checkpoint of"
                f" step {step}; the same command continues it once the folder has its name back, or with --out and"
                " its new name"
            )

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of `run.json`; empty when there is none. What this object has written it knows without a file."""
        return read_metadata(self.path) if self._written is None else self._written

    def update_metadata(self, **entries: Any) -> None:
        self.check_place()
        content = {**self.metadata, **entries}
        write_json(self.path / "run.json", content)
        self._written = content

    def restore_metadata(self) -> None:
        """Write a `run.json` that is gone as the newest checkpoint holds it."""
        if not (self.path / "run.json").exists():
            self.update_metadata(**{**stored_metadata(self.path), "status": "stopped"})
            log(f"warning: {self.path / 'run.json'} was gone; it is restored from the checkpoint")

    def continue_from(self, step: int) -> None:
        """Leave nothing of later steps or of saves that were cut off; log what a run that was trained does not have."""
        self.remove_partial_files()
        saved = self.metadata.get("last_checkpoint")
        if saved is not None and step < saved:
            log(f"warning: {self.path} had a checkpoint of step {saved}; it goes on from that of step {step}")
        if step > 0 and not (self.path / "metrics.jsonl").exists():
            log(f"warning: {self.path / 'metrics.jsonl'} is gone: curves begin at step {step}; the weights are whole")
        self.rewind(step)

    def update_status(self, status: str, **entries: Any) -> None:
        """Set the status in `run.json`, if it can be written."""
        with self.tolerate_io_errors("run.json"), suppress(FolderMovedError):
            self.update_metadata(status=status, **entries)

    def write_optional_json(self, name: str, content: Any) -> None:
        """Replace a JSON file that training can do without, if it can be written."""
        with self.tolerate_io_errors(name):
            write_json(self.path / name, content)

    def read(self, name: str, default: Any) -> Any:
        """The content of such a file; the default where there is none."""
        try:
            return json.loads(read_text(self.path / name))
        except (OSError, ValueError):
            return default

    def log_metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`, if it can be written."""
        self.check_place()
        with self.tolerate_io_errors("metrics.jsonl"), (self.path / "metrics.jsonl").open("a") as journal:
            journal.write(json.dumps(line) + "\n")
        if self.listener is not None:
            self.listener.line(line)

    def count_metrics(self, kind: str) -> int:
        """The number of lines of a kind in `metrics.jsonl`."""
        journal = self.path / "metrics.jsonl"
        lines = journal.read_text(errors="replace").splitlines() if journal.is_file() else []
        return sum(f'"kind": "{kind}"' in line for line in lines)

    def sync_metrics(self) -> None:
        """Wait until the lines of metrics are on the disk: those of a checkpoint's steps are not lost without it."""
        journal = self.path / "metrics.jsonl"
        with self.tolerate_io_errors(journal.name), suppress(FileNotFoundError):
            sync(journal)

    @contextmanager
    def tolerate_io_errors(self, what: str) -> Iterator[None]:
        """Log an OSError of the body once, as a warning, and go on: a full disk costs the file, not the run."""
        try:
            yield
        except OSError as error:
            if what not in self._complained:
                log(f"warning: {self.path / what} cannot be written ({error}); training goes on")
            self._complained.add(what)

    def rewind(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` after a step, and a line that was cut off."""
        journal = self.path / "metrics.jsonl"
        text = journal.read_text(errors="replace") if journal.exists() else ""
        remaining = "".join(line for line in text.splitlines(keepends=True) if _step_of(line) <= step)
        if remaining != text:
            with self.tolerate_io_errors(journal.name):
                write_text(journal, remaining)

    def clear(self) -> None:
        """Remove what a run has written here, and nothing else."""
        self._written = None
        for name in _RUN_FILES:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        remove_partial_files(self.path)
        for partial in self.path.rglob(".*.part"):
            partial.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder. Raises ValueError, naming it, when one trains in it."""
        with hold(self.path / RUN_LOCK, waits=True) as other:
            if other:
                raise ValueError(
                    f"another process ({other}) is training in {self.path}; wait for it, or give another --out"
                )
            self._place = _place_of(self.path)
            yield


class ReadOnlyRun(RunFolder):
    """A run folder in a process that writes nothing, since another one does."""

    def update_metadata(self, **entries: Any) -> None: ...

    def write_optional_json(self, name: str, content: Any) -> None: ...

    def log_metrics(self, line: Mapping[str, Any]) -> None: ...


def _place_of(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for a line that was cut off."""
    with suppress(ValueError, KeyError, TypeError):
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    return math.inf


def choose_folder(out: str | None, recipe: str) -> Path:
    """The folder `out`, or the next free `runs/<recipe>-<n>`. Raises ValueError for a name that is no UTF-8."""
    if out is not None:
        if out != printable(out):
            raise ValueError(f"--out {out} is no UTF-8, which files of weights need in their path; give another --out")
        return user_path(out)
    return next(path for n in count(1) if not (path := Path("runs") / f"{recipe}-{n}").exists())


def check_writable(path: Path) -> None:
    """Raise PermissionError or NotADirectoryError when a folder cannot be made or written; leaves nothing behind."""
    place = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    if not place.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {place} is a file; give another --out")
    try:  # permissions alone say little: to root, on network drives, or when the disk is full
        with tempfile.TemporaryDirectory(dir=place, prefix=".unveil-"):
            pass
    except OSError as error:
        raise PermissionError(f"{path} cannot be written: {error.strerror} in {place}; give another --out") from error


def check_apart(path: Path, data: str) -> None:
    """Raise ValueError when a run would lie among its images: its pictures would be taken for some of them."""
    images = user_path(data)
    if images.is_dir() and path.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"{path} lies in {data}: its pictures would be taken for images; give an --out elsewhere")


def _longer(path: Path) -> str:
    return f"to train it for longer, give --init-from {path} --continue-schedule tail and a new --out"


def read_trained_images(path: Path) -> UInt64[np.ndarray, " N"] | None:
    """The identities of the images that a run was trained on; None where it has not stored them.

    Raises ValueError where the file was cut off.
    """
    stored = path / TRAINED_IMAGES
    content = stored.read_bytes() if stored.is_file() else None
    if content is not None and (len(content) % 8 or not content):
        raise ValueError(f"{stored} is damaged: it has {len(content)} bytes, no multiple of 8; remove it to do without")
    return None if content is None else np.frombuffer(content, np.uint64)


def has_trained(path: Path) -> bool:
    """Whether the run in a folder has made a step that it has stored or written down."""
    stored = [step for name in ("checkpoints", WEIGHTS_FOLDER) for step in (path / name).glob("step-*")]
    return bool(stored or _last_metrics(path) or read_metadata(path).get("last_checkpoint"))


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole line of metrics of a step of training; empty where there is none."""
    journal = path / "metrics.jsonl"
    lines = journal.read_text(errors="replace").splitlines(keepends=True) if journal.is_file() else []
    steps = (line for line in reversed(lines) if '"kind": "step"' in line and math.isfinite(_step_of(line)))
    return next(map(json.loads, steps), {})


def stored_metadata(path: Path) -> dict[str, Any]:
    """The content of `run.json`; where it is gone, as the newest checkpoint that is whole holds it; empty without.

    Raises ValueError where the file is damaged.
    """
    if (path / "run.json").exists():
        return read_metadata(path)
    for folder in reversed(folders(path)):
        with suppress(ValueError):
            return current_entries(read_state(folder).get("run", {}))
    return {}


def check_checkpoints(path: Path) -> None:
    """Raise ValueError where a run that has no checkpoint has had one: to begin it again would remove what is left."""
    metadata, last = read_metadata(path), _last_metrics(path)
    step = metadata.get("last_checkpoint")
    if "last_checkpoint" not in metadata:  # an older run did not write it down
        minutes = metadata.get("settings", {}).get("save_minutes", math.inf)
        if metadata.get("status") == "stopped" or last.get("time", 0) > 60 * minutes:
            step = last.get("step")
    if step:
        raise ValueError(f"{path} was trained to step {step}, and its checkpoints are gone{_remains(path)}")


def _remains(path: Path) -> str:
    """The end of an error: what is left of a run that cannot be continued, and the ways out."""
    left = ", ".join(name for name in _RUN_FILES if (path / name).exists())
    kept = sorted((path / WEIGHTS_FOLDER).glob("step-*"))
    start = f" (--init-from {kept[-1]} starts from the weights that it kept)" if kept else ""
    return (
        f"; left are {left}. Put back what is gone, give another --out{start}, or --overwrite, which removes the rest"
    )


def is_continuation(path: Path, fingerprint: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds an unfinished run of the same recipe and options, which is then continued.

    So is a finished one whose last weights are damaged or gone. One of other options that has not made a step is
    replaced. Raises FinishedError for a finished run of the same options, and ValueError, with the differences, when
    the folder holds something else.
    """
    if not path.exists() or not any(path.iterdir()):
        return False
    is_ours = (path / "run.json").exists() or (path / RUN_LOCK).exists()
    if is_ours and overwrite:
        return False
    metadata = stored_metadata(path)
    if not is_ours and not metadata:
        raise ValueError(f"{path} holds files that are no run; give another --out, or an empty folder")
    if overwrite:
        return False
    if not metadata and not (path / "run.json").exists():
        if has_trained(path):
            raise ValueError(f"{path} holds a run whose run.json is gone{_remains(path)}")
        return False  # a run that was killed before it began
    resolved = {k: v for k, v in metadata.get("options", {}).items() if k in fingerprint}  # given now, set by us then
    before, now = current_options({**resolved, **metadata.get("given", {})}), current_options(fingerprint)
    differs = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    is_finished = metadata.get("status") == "finished"
    if differs and not is_finished and not has_trained(path):
        log(f"note: {path} holds a run that was stopped before its first step; this one takes its place")
        return False
    if differs:
        changes = "; ".join(f"{k}: {before.get(k)!r} then, {now.get(k)!r} now" for k in differs)
        is_longer = is_finished and set(differs) <= {"epochs", "minutes"}
        longer = f"; {_longer(path)}" if is_longer else ""
        raise (LongerError if is_longer else ValueError)(
            f"{path} holds another run ({changes}){longer}; give another --out, the same options, or --overwrite"
        )
    if is_finished and lost(path):
        log(
            f"note: {path} was finished, and its last weights are lost; training goes on from the last whole checkpoint"
        )
        return True
    if is_finished:
        raise FinishedError(f"{path} holds this run, finished; {_longer(path)}; or give another --out, or --overwrite")
    return True
