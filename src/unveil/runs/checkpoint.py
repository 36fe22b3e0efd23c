"""Checkpoints, written atomically and checked when read: a folder `checkpoints/step-00000123` each.

It holds `model.safetensors` (trained and averaged weights), `optimizer.safetensors` (moments by parameter name) and
`state.json` (the state of training, and checksums of all three).
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .atomic import replacing, sync, write_json

WEIGHTS_FOLDER = "kept"  # the folder of weights that stay
NUM_CHECKPOINTS = 2  # of a run, in case the newest is damaged
_MOMENTS = {  # what an optimizer remembers of a parameter, by an entry of its groups that tells which one it is
    "betas": ("step", "exp_avg", "exp_avg_sq"),  # an Adam
    "trust": ("momentum",),  # LARS
    "momentum": ("momentum_buffer",),  # Muon, SGD
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: tensors by name, on the CPU."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save(
    run: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
    at_epoch: float | None = None,
) -> Path:
    """Write the checkpoint of a step; remove all but the newest `NUM_CHECKPOINTS` and any of a later step.

    With `at_epoch` it goes to the weights that stay. Raises OSError when it cannot be written; the previous
    checkpoints are untouched then.
    """
    folder = run / ("checkpoints" if at_epoch is None else WEIGHTS_FOLDER)
    if at_epoch is not None:
        state = {**state, "kept_at": at_epoch}
    folder.mkdir(exist_ok=True)
    remove_partial_files(run)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}"
    try:
        temporary.mkdir()
        checksums = {}
        for name, tensors in (("model", model), ("optimizer", optimizer)):
            if not tensors:  # safetensors cannot read an empty file
                continue
            file = temporary / f"{name}.safetensors"
            _save_tensors(file, tensors, dict(metadata) if name == "model" else {})
            checksums[file.name] = _checksum(file)
            sync(file)
        content = {**state, "step": step, "checksums": checksums}
        write_json(temporary / "state.json", {**content, "checksum": _checksum_of(content)})
        sync(temporary)
        if final.exists():  # a damaged one: the run has resumed from an earlier one
            shutil.rmtree(final)
        temporary.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if at_epoch is None:
        existing = folders(run)
        newest = existing[: existing.index(final) + 1][-NUM_CHECKPOINTS:]
        for other in set(existing) - set(newest):
            shutil.rmtree(other, ignore_errors=True)
    return final


def write_weights(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a weight file that stands alone, atomically. Raises OSError when it cannot be written."""
    with replacing(file) as temporary:
        _save_tensors(temporary, tensors, dict(metadata))


def remove_partial_files(run: Path) -> None:
    """Remove the partial checkpoints of a process that was killed while it saved."""
    for name in ("checkpoints", WEIGHTS_FOLDER):
        for partial in (run / name).glob(".step-*"):
            shutil.rmtree(partial, ignore_errors=True)


def _save_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    own = {name: t.detach().to("cpu", copy=t.device.type == "cpu").contiguous() for name, t in tensors.items()}
    try:
        file.touch()
        mode = file.stat().st_mode  # by the umask; safetensors writes a new file for its owner alone
        save_file(own, file, metadata=metadata)
        file.chmod(mode)
    except Exception as error:  # safetensors wraps the system's error in its own type
        raise OSError(f"{file} could not be written: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint folder. Raises ValueError when it is damaged."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        if _checksum_of({k: v for k, v in state.items() if k != "checksum"}) != state["checksum"]:
            raise ValueError("its checksum is not the one that was written")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / 'state.json'} is damaged: {error}") from error
    return state


def read(path: Path, state: dict[str, Any] | None = None) -> Checkpoint:
    """Read one checkpoint folder, whose `state` may be read already. Raises ValueError when a file is damaged."""
    state = state or read_state(path)
    try:
        for name, expected in state["checksums"].items():
            if _checksum(path / name) != expected:
                raise ValueError(f"{path / name} is damaged: its checksum is not the one that was written")
        moments = path / "optimizer.safetensors"
        optimizer = load_file(moments) if moments.name in state["checksums"] else {}
        return Checkpoint(path, load_file(path / "model.safetensors"), optimizer, state)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error


def read_latest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a run, and the errors of newer ones."""
    complaints: list[str] = []
    for path in reversed(folders(run)):
        try:
            return read(path), complaints
        except ValueError as error:
            complaints.append(str(error))
    return None, complaints


def folders(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def weights_by_step(run: Path) -> dict[int, Path]:
    """The folders of all weights of a run, saved ones and checkpoints, by step in ascending order."""
    all_folders = [*folders(run), *sorted((run / WEIGHTS_FOLDER).glob("step-*"))]
    return dict(sorted((int(f.name.removeprefix("step-")), f) for f in all_folders))


def _checksum(file: Path) -> str:
    value = 0
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"crc32:{value:08x}"


def _checksum_of(content: Mapping[str, Any]) -> str:
    return f"crc32:{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _moments(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """What an optimizer remembers of each parameter."""
    of: dict[Tensor, tuple[str, ...]] = {}
    for group in optimizer.param_groups:
        moments = next(moments for entry, moments in _MOMENTS.items() if entry in group)
        of |= dict.fromkeys(group["params"], moments)
    return of


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimizer under the names of their parameters."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{moment}": torch.as_tensor(optimizer.state[parameter][moment])
        for parameter, moments in _moments(optimizer).items()
        if parameter in optimizer.state
        for moment in moments
    }


def fitting_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Those moments of an optimizer that this one keeps too, of parameters of the same shape."""
    fitting: dict[str, Tensor] = {}
    of = _moments(optimizer)
    for name, parameter in model.named_parameters():
        names = [f"{name}:{moment}" for moment in of.get(parameter, ())]
        own = {n: tensors[n] for n in names if n in tensors and tensors[n].shape in (parameter.shape, ())}
        fitting |= own if len(own) == len(names) else {}
    return fitting


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set the moments of the parameters that `tensors` has; those of other parameters start at zero."""
    parameters = dict(model.named_parameters())
    for name, value in fitting_moments(model, optimizer, tensors).items():
        of, _, moment = name.rpartition(":")
        parameter = parameters[of]  # also the step count lies on its device, as a fused Adam needs
        optimizer.state[parameter][moment] = value.to(parameter.device, copy=True)
