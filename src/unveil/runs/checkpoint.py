"""Checkpoints, written atomically and checked when read: a folder `checkpoints/step-00000123` each.

It holds `model.safetensors` (trained and averaged weights), `optimizer.safetensors` (moments by parameter name) and
`state.json` (the state of training, and checksums of all three). Where several processes write it together, `model` and
`optimizer` are folders with a file of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .atomic import make_folder, replacing, sync, write_json
from .checkpoint_parts import leads, read_parts, together, write_parts
from .checkpoint_state import (
    REPLAY_FOLDER,
    STATE,
    WEIGHTS_FOLDER,
    all_weights,
    check_tensors,
    checksum,
    checksum_of,
    folders,
    missing,
    read_state,
    step_of,
    stored_files,
    weights_checksum,
)
from .console import log
from .dtensors import sharded_like

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

    @property
    def identity(self) -> dict[str, Any]:
        """Which weights these are, as results say it: step, epoch, and the checksum of their file."""
        return {
            **{n: self.state[n] for n in ("step", "epoch") if n in self.state},
            "checksum": weights_checksum(self.state),
        }


def save(
    run: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
    at_epoch: float | None = None,
    spared: Collection[int] = (),
    in_parts: bool = False,
) -> Path:
    """Write the checkpoint of a step; remove all but the newest `NUM_CHECKPOINTS` and `spared` steps, and later ones.

    With `at_epoch` it goes to the weights that stay. With `in_parts` all processes call it, and each writes its part.
    Raises OSError when it cannot be written; the previous checkpoints are untouched then.
    """
    if at_epoch is not None:
        return write(run, WEIGHTS_FOLDER, step, model, {}, {**state, "kept_at": at_epoch}, metadata)
    final = write(run, "checkpoints", step, model, optimizer, state, metadata, in_parts)
    if in_parts and not leads():
        return final
    existing = folders(run)
    earlier = existing[: existing.index(final) + 1]
    remaining = {*earlier[-NUM_CHECKPOINTS:], *(f for f in earlier if step_of(f) in spared)}
    for other in set(existing) - remaining:
        shutil.rmtree(other, ignore_errors=True)
    return final


def save_replay(
    run: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> Path:
    """Keep the weights before a step for `unveil replay`, and no other step. Raises OSError."""
    final = write(run, REPLAY_FOLDER, step, model, optimizer, state, metadata)
    for other in final.parent.glob("step-*"):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def write(
    run: Path,
    place: str,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
    in_parts: bool = False,
) -> Path:
    """Write weights and moments with their state into a place of the run, as a whole or not at all. Raises OSError."""
    final = run / place / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}")
    both = {"model": model, "optimizer": optimizer}
    tensors = {kind: of for kind, of in both.items() if of}  # safetensors cannot read an empty file
    try:
        if in_parts:
            _write_in_parts(run, temporary, tensors, step, state)
            return final
        _begin(run, temporary)
        checksums = {}
        for kind, of in tensors.items():
            file = temporary / f"{kind}.safetensors"
            _save_tensors(file, of, dict(metadata) if kind == "model" else {})
            checksums[file.name] = checksum(file)
            sync(file)
        _finish(temporary, final, {**state, "step": step, "checksums": checksums})
    except BaseException:
        if not in_parts or leads():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _write_in_parts(
    run: Path, temporary: Path, tensors: Mapping[str, Mapping[str, Tensor]], step: int, state: Mapping[str, Any]
) -> None:
    """Write a checkpoint of which each process writes its part; rank zero begins and ends it. Raises OSError in all."""
    final = temporary.with_name(temporary.name.removeprefix("."))
    together(lambda: _begin(run, temporary) if leads() else None)
    own = together(lambda: [write_parts(temporary / kind, of) for kind, of in tensors.items()])
    checksums = {name: value for parts in own for part in parts for name, value in part.items()}

    def finish() -> None:
        for kind in tensors:
            sync(temporary / kind)
        weights = checksum_of({name: value for name, value in checksums.items() if name.startswith("model/")})
        _finish(temporary, final, {**state, "step": step, "checksums": checksums, "weights": weights})

    together(lambda: finish() if leads() else None)


def _begin(run: Path, temporary: Path) -> None:
    make_folder(temporary.parent)
    remove_partial_files(run)
    temporary.mkdir()


def _finish(temporary: Path, final: Path, content: Mapping[str, Any]) -> None:
    """Write the state beside tensors that are on the disk, and give the folder its name."""
    write_json(temporary / STATE, {**content, "checksum": checksum_of(content)})
    sync(temporary)
    if final.exists():  # a damaged one: the run has resumed from an earlier one
        shutil.rmtree(final)
    temporary.rename(final)
    sync(final.parent)


def write_weights(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a weight file that stands alone, atomically. Raises OSError when it cannot be written."""
    with replacing(file) as temporary:
        _save_tensors(temporary, tensors, dict(metadata))


def remove_partial_files(run: Path) -> None:
    """Remove the partial checkpoints of a process that was killed while it saved."""
    for name in ("checkpoints", WEIGHTS_FOLDER, REPLAY_FOLDER):
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


def read(path: Path, state: dict[str, Any] | None = None) -> Checkpoint:
    """Read one checkpoint folder, whose `state` may be read already. Raises ValueError when a file is damaged."""
    weights = _read_weights(path, state or read_state(path))
    return replace(weights, optimizer=_read_moments(weights))


def _read_weights(path: Path, state: dict[str, Any]) -> Checkpoint:
    check_tensors(path, state, "model")
    return Checkpoint(path, _read_tensors(path, state, "model"), {}, state)


def _read_moments(weights: Checkpoint) -> dict[str, Tensor]:
    if not stored_files(weights.state, "optimizer"):
        return {}
    check_tensors(weights.path, weights.state, "optimizer")
    return _read_tensors(weights.path, weights.state, "optimizer")


def _read_tensors(path: Path, state: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    if stored_files(state, kind) == [f"{kind}.safetensors"]:
        return load_file(path / f"{kind}.safetensors")
    return read_parts(path / kind)


def read_latest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a run, to train on from, and the errors of newer ones."""
    complaints: list[str] = []
    for path in reversed(folders(run)):
        try:
            return read(path), complaints
        except ValueError as error:
            complaints.append(str(error))
    return None, complaints


def read_newest_weights(run: Path, last: int | None, warn: bool = True) -> Checkpoint:
    """The newest whole weights of a run whose last checkpoint was at step `last`, with moments where these are whole.

    A line on stderr says why they are not the newest of all. Raises ValueError where none are whole.
    """
    complaints = missing(run, last)
    newest = max([-1 if last is None else last, *map(step_of, folders(run))])
    earlier = [folder for folder in all_weights(run) if step_of(folder) <= newest]
    for path in sorted(earlier, key=lambda folder: (-step_of(folder), folder.parent.name == WEIGHTS_FOLDER)):
        try:
            weights = _read_weights(path, read_state(path))
        except ValueError as error:
            complaints.append(str(error))
            continue
        try:
            weights = replace(weights, optimizer=_read_moments(weights))
        except ValueError as error:
            complaints.append(str(error))
        if complaints and warn:
            log(f"warning: {'; '.join(complaints)}; {_instead(run, weights, newest)}")
        return weights
    raise ValueError(f"{run} has no whole checkpoint yet" + "".join(f"; {c}" for c in complaints))


def _instead(run: Path, used: Checkpoint, newest: int) -> str:
    """What is used in the place of damaged weights, and how to make these good."""
    step, place = used.state["step"], used.path.relative_to(run)
    if step == newest:
        return f"the weights of this step in {place} are whole and are used"
    return (
        f"{place}, of epoch {used.state['epoch']:.4g}, is used instead of step {newest}; the `unveil pretrain` command"
        f" of the run, with --out {run}, trains the rest again"
    )


def _moments(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """What an optimizer remembers of each parameter."""
    of: dict[Tensor, tuple[str, ...]] = {}
    for group in optimizer.param_groups:
        moments = next(moments for entry, moments in _MOMENTS.items() if entry in group)
        of |= dict.fromkeys(group["params"], moments)
    return of


def disk_rule(model: nn.Module, optimizer: torch.optim.Optimizer, num_checkpoints: int, num_kept: int) -> str:
    """A sentence with the most that the weights of a run may take on the disk, in MB (10**6 bytes)."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    moments = sum(p.nbytes * len({*names} - {"step"}) for p, names in _moments(optimizer).items())
    both, total = weights + moments, (num_checkpoints + 2) * (weights + moments) + num_kept * weights
    kept = f"; {num_kept} times the weights alone, {weights / 1e6:.3g} MB each" if num_kept else ""
    return (
        f"disk: at most {num_checkpoints} checkpoints of {both / 1e6:.3g} MB, one that is being written and one step to"
        f" replay{kept}: {total / 1e6:.3g} MB, beside metrics and pictures"
    )


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
        own = value.to(parameter.device, copy=True)
        optimizer.state[parameter][moment] = sharded_like(own, parameter) if own.shape == parameter.shape else own
