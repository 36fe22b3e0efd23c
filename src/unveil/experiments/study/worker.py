"""One job of a study in a process of its own: `python -m unveil.experiments.study.worker FOLDER JOB`."""

from __future__ import annotations

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
from ...runs.checkpoint_state import lost, newest_weights
from ...runs.console import exit_status
from ...runs.folder import RunFolder, read_metadata
from ...runs.lock import hold
from .jobs import digest

ANALYSES: dict[str, Callable[..., Any]] = {
    "attention": analyze_attention,
    "blocks": analyze_blocks,
    "features": analyze_features,
}
TAKEN = 75  # the exit code of a process whose job another process holds


def main(folder: Path, name: str) -> int:
    """Run what is left of a job, and return the exit code: 0 done, 1 failed, 130 or 143 stopped."""
    job = json.loads((folder / "jobs" / f"{name}.json").read_text())
    with hold(folder / "locks" / name) as other:
        if other:
            return TAKEN
        try:
            perform(folder / "runs" / name, job)
        except KeyboardInterrupt as stopped:
            return exit_status(stopped)
        except (ValueError, OSError) as error:
            print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
            return 1
        except Exception as error:  # a fault: the traceback goes to the log, its last line to the table
            traceback.print_exc()
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


def perform(run: Path, job: dict[str, Any]) -> None:
    """Pretrain, unless the run is finished, and make the measurements that it has not with these settings."""
    if read_metadata(run).get("status") != "finished" or lost(run):
        pretrain(job["recipe"], out=str(run), **_arguments(job["pretrain"]))
    for measurement in [*job["evaluate"], *job["analyze"]]:
        measured = measured_digests(run)
        if digest(measurement) in measured:
            continue
        given = _arguments(measurement)
        ANALYSES.get(given.pop("analysis", ""), evaluate)(str(run), device=job["device"], **given)
        write_json(run / "study.json", {"measured": [*measured, digest(measurement)], "weights": newest_weights(run)})


def is_done(run: Path, job: dict[str, Any]) -> bool:
    """Whether a job's run is finished and all its measurements are made."""
    if RunFolder(run).read("run.json", {}).get("status") != "finished":
        return False
    return {digest(measurement) for measurement in [*job["evaluate"], *job["analyze"]]} <= {*measured_digests(run)}


def measured_digests(run: Path) -> list[str]:
    """The digests of the measurements that a run has, of its newest weights."""
    content = RunFolder(run).read("study.json", {})
    is_current = "weights" not in content or content["weights"] == newest_weights(run)
    return list(content.get("measured", ())) if is_current else []


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments from JSON, with its lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _stop_with_parent() -> None:
    """Stop, and save, when the process that started this one ends: its end of the pipe is then closed."""

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
