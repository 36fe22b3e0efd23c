"""What the checkpoints of a run say of themselves, read without torch: steps, states, and which files are whole."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .regular_files import open_regular, read_text

MODEL, STATE = "model.safetensors", "state.json"
WEIGHTS_FOLDER = "kept"  # the folder of weights that stay
REPLAY_FOLDER = "replay"  # the folder of a step that was not finite, and of the weights before it


def folders(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return _folders(run / "checkpoints")


def replay_folder(run: Path) -> Path | None:
    """The folder of the step that a run has recorded for `unveil replay`; None where there is none."""
    return next(reversed(_folders(run / REPLAY_FOLDER)), None)


def _folders(parent: Path) -> list[Path]:
    return sorted(folder for folder in parent.glob("step-*") if folder.name.removeprefix("step-").isdecimal())


def step_of(folder: Path) -> int:
    """The step in the name of a folder with weights."""
    return int(folder.name.removeprefix("step-"))


def all_weights(run: Path) -> list[Path]:
    """The folders of all weights of a run, by step in ascending order, and of a step its checkpoint first."""
    return sorted([*folders(run), *_folders(run / WEIGHTS_FOLDER)], key=step_of)


def weights_by_step(run: Path) -> dict[int, Path]:
    """The folders of all weights of a run, saved ones and checkpoints, by step in ascending order."""
    return {step_of(folder): folder for folder in all_weights(run)}


def read_state(path: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint folder. Raises ValueError when it is damaged."""
    try:
        state: dict[str, Any] = json.loads(read_text(path / STATE))
        if checksum_of({k: v for k, v in state.items() if k != "checksum"}) != state["checksum"]:
            raise ValueError("its checksum is not the one that was written")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / STATE} is damaged: {error}") from error
    return state


def check_file(path: Path, state: Mapping[str, Any], name: str) -> None:
    """Raise ValueError where a file of a checkpoint folder is gone, or not the one that was written."""
    try:
        if checksum(path / name) != state["checksums"][name]:
            raise ValueError(f"{path / name} is damaged: its checksum is not the one that was written")
    except (OSError, KeyError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else f"{STATE} lists no {error}"
        raise ValueError(f"{path / name} cannot be read: {reason}") from error


def stored_files(state: Mapping[str, Any], kind: str) -> list[str]:
    """The files of a checkpoint that hold its tensors of a kind, `model` or `optimizer`.

    That is one, or those that several processes wrote into a folder of this name.
    """
    checksums = state.get("checksums")
    names = checksums if isinstance(checksums, Mapping) else ()
    return sorted(name for name in names if name == f"{kind}.safetensors" or name.startswith(f"{kind}/"))


def check_tensors(path: Path, state: Mapping[str, Any], kind: str) -> None:
    """Raise ValueError where a file with tensors of a kind is gone, too many, or not the one that was written."""
    names = stored_files(state, kind)
    for name in names or [f"{kind}.safetensors"]:
        check_file(path, state, name)
    folder = path / kind
    if folder.is_dir() and (strange := {f"{kind}/{file.name}" for file in folder.iterdir()}.difference(names)):
        raise ValueError(f"{folder} is damaged: {STATE} lists no {min(strange)}")


def weights_checksum(state: Mapping[str, Any]) -> str | None:
    """The checksum of the weights of a checkpoint, which results carry; None where its state has none."""
    of_files: str | None = state.get("weights", state["checksums"].get(MODEL))  # the first of several files
    return of_files


def check_beside(file: Path) -> None:
    """Raise ValueError where a weight file in a checkpoint folder is not the one that was written."""
    if file.parent.name.startswith("step-") and (file.parent / STATE).is_file():
        state = read_state(file.parent)
        if file.name in state["checksums"]:
            check_file(file.parent, state, file.name)


def newest_weights(run: Path) -> dict[str, Any] | None:
    """The step and the checksum of the newest weights that a run had, whole or not; None where there are none.

    The checksum is None where it is not known any more.
    """
    last = _last_step(run)
    if missing(run, last):
        return {"step": last, "checksum": None}
    for folder in folders(run)[-1:]:
        with suppress(ValueError, KeyError):
            return {"step": step_of(folder), "checksum": weights_checksum(read_state(folder))}
        return {"step": step_of(folder), "checksum": None}
    return None


def missing(run: Path, last: int | None) -> list[str]:
    """A sentence where the last checkpoint that a run wrote, at this step, is gone."""
    there = folders(run)
    if last is None or (there and step_of(there[-1]) >= last):
        return []
    return [f"{run / 'checkpoints'} has no checkpoint of step {last}, the last"]


def lost(run: Path) -> list[str]:
    """Why the newest weights of a run cannot be used; empty where they are whole, or there are none yet."""
    complaints = missing(run, _last_step(run))
    try:
        for newest in folders(run)[-1:] if not complaints else []:
            check_tensors(newest, read_state(newest), "model")
    except ValueError as error:
        complaints.append(str(error))
    return complaints


def _last_step(run: Path) -> int | None:
    """The step of the last checkpoint that a run wrote, as its `run.json` says; None where it does not."""
    with suppress(OSError, ValueError, AttributeError):
        last = json.loads(read_text(run / "run.json")).get("last_checkpoint")
        return last if isinstance(last, int) else None
    return None


def checksum(file: Path) -> str:
    """The checksum of a file. Raises OSError."""
    value = 0
    with os.fdopen(open_regular(file), "rb") as content:
        while block := content.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"crc32:{value:08x}"


def checksum_of(content: Mapping[str, Any]) -> str:
    """The checksum of what JSON can hold."""
    return f"crc32:{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
