"""One job of a study in a process of its own: `python -m unveil.experiments.study.worker FOLDER JOB`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...commands.analyze import analyze_attention, analyze_blocks, analyze_features
from ...commands.evaluate import evaluate
from ...commands.pretrain import pretrain
from ...runs.atomic import write_json
from ...runs.folder import RunFolder, read_metadata
from ...runs.lock import hold

ANALYSES: dict[str, Callable[..., Any]] = {
    "attention": analyze_attention,
    "blocks": analyze_blocks,
    "features": analyze_features,
}
TAKEN = 75  # the exit code of a process that found its job in other hands


def main(folder: Path, name: str) -> int:
    """Do what is left of a job, and return the exit code: 0 done, 1 failed, 130 interrupted."""
    job = json.loads((folder / "jobs" / f"{name}.json").read_text())
    with hold(folder / "locks" / name) as other:
        if other:
            return TAKEN
        try:
            perform(folder / "runs" / name, job)
        except KeyboardInterrupt:
            return 130
        except (ValueError, OSError) as error:
            print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
            return 1
        except Exception as error:  # a fault: its traceback is in the log, the last line is what the table says
            traceback.print_exc()
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


def perform(run: Path, job: dict[str, Any]) -> None:
    """Pretrain, where that is not finished, and measure what has not been measured with these settings."""
    if read_metadata(run).get("status") != "finished":
        pretrain(job["recipe"], out=str(run), **_arguments(job["pretrain"]))
    for asked in job["evaluate"]:
        if digest(asked) not in measured_digests(run):
            evaluate(str(run), device=job["device"], **_arguments(asked))
            _note(run, asked)
    for asked in job["analyze"]:
        if digest(asked) not in measured_digests(run):
            given = {name: value for name, value in _arguments(asked).items() if name != "analysis"}
            ANALYSES[asked["analysis"]](str(run), device=job["device"], **given)
            _note(run, asked)


def _note(run: Path, asked: dict[str, Any]) -> None:
    write_json(run / "study.json", {"measured": [*measured_digests(run), digest(asked)]})


def is_done(run: Path, job: dict[str, Any]) -> bool:
    """Whether nothing of a job is left to do."""
    finished = RunFolder(run).read("run.json", {}).get("status") == "finished"
    return finished and all(digest(asked) in measured_digests(run) for asked in [*job["evaluate"], *job["analyze"]])


def measured_digests(run: Path) -> list[str]:
    """The digests of the measurements that a run has."""
    try:
        return list(json.loads((run / "study.json").read_text())["measured"])
    except FileNotFoundError:
        return []


def digest(asked: dict[str, Any]) -> str:
    """A measurement's settings in a word."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments as functions take them: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _stop_with_parent() -> None:
    """Stop, and save, when the process that started this one is gone: then its end of the pipe is closed."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock the interpreter would wait for at its end
            continue
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
    if "--with-parent" in sys.argv:
        _stop_with_parent()
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
