"""A finished run that is to be longer: the same folder, its optimiser's moments, and a schedule of more epochs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..runs.atomic import write_text
from ..runs.checkpoint_state import folders, read_state
from ..runs.console import log
from ..runs.folder import LongerError, RunFolder
from ..runs.regular_files import read_text

LENGTH = ("epochs", "minutes")


def extend(run: RunFolder, asked: Mapping[str, Any], refused: LongerError) -> None:
    """Change a finished run into one of more epochs that was stopped at its last step. The folder is locked.

    `asked` are the options of now (`PretrainConfig.fingerprint`): more epochs, or more minutes of all training, which
    become epochs at the pace of the run. The learning rate goes on where the longer schedule is at this step, as with
    `--continue-schedule tail`. Raises `refused`, with the reason, for a run that is as long already, and where there
    are several stages, or no option `epochs`.
    """
    stored, state = run.metadata, read_state(folders(run.path)[-1])
    stages, done, seconds = stored["model"]["stages"], float(state["epoch"]), float(stored.get("seconds", 0.0))
    if len(stages) != 1 or "epochs" not in stored["options"]:
        raise LongerError(f"{refused}. It cannot be made longer in place, for it has several stages") from refused
    epochs, minutes = asked.get("epochs"), asked.get("minutes")
    if epochs is None and minutes is not None and seconds > 0:
        epochs = done + done * (60 * minutes - seconds) / seconds
    if epochs is None or epochs <= done:
        trained = f"it was trained for {done:.4g} epochs, {seconds / 60:.3g} minutes; give more"
        raise LongerError(f"{refused}. To go on in place, {trained}") from refused
    epochs = float(f"{epochs:.4g}")
    entry = {"step": stored["last_checkpoint"], "epochs": [done, epochs]}
    kept = {name: value for name, value in stored["given"].items() if name not in LENGTH}
    budget = None if asked.get("epochs") is not None or minutes is None else 60.0 * minutes
    log(f"note: {run.path} was finished after {done:.4g} epochs; it goes on to {epochs:.4g}")
    file = run.path / "config.yaml"
    if file.is_file():
        write_text(file, re.sub(r"(?m)^epochs: .*$", f"epochs: {epochs}", read_text(file)))
    run.update_metadata(
        given={**kept, **{name: asked[name] for name in LENGTH if name in asked}},
        options={**stored["options"], "epochs": epochs},
        model={**stored["model"], "stages": [{**stages[0], "epochs": epochs}]},
        plan={**(stored.get("plan") or {}), "budget": budget} if stored.get("plan") else stored.get("plan"),
        updates={},
        extended=[*stored.get("extended", []), entry],
        status="stopped",
    )


def without_old_schedule(state: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint; of one from before the run was made longer, without the schedule of that time."""
    last = max((entry["step"] for entry in metadata.get("extended", ())), default=-1)
    return {k: v for k, v in state.items() if k != "schedule"} if state["step"] <= last else state
