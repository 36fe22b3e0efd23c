"""Checkpoints: whole or not there, whatever happens while they are written, and checked when they are read."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from unveil.runs import checkpoint
from unveil.runs.checkpoint import NUM_CHECKPOINTS, optimizer_tensors, read, read_latest, restore_optimizer, save


def put(run: Path, step: int) -> Path:
    """A checkpoint that tells its step by its weights."""
    tensors = {"weight": torch.full((64,), float(step))}
    return save(run, step, tensors, {"weight:exp_avg": torch.full((64,), -float(step))}, {"stage": 0}, {"made": "here"})


def steps(run: Path) -> list[int]:
    return [int(p.name.removeprefix("step-")) for p in sorted((run / "checkpoints").glob("step-*"))]


def test_what_is_read_is_what_was_written(tmp_path: Path):
    result = read(put(tmp_path, 7))
    assert (result.state["step"], result.state["stage"]) == (7, 0)
    assert result.model["weight"].tolist() == [7.0] * 64
    assert result.optimizer["weight:exp_avg"].tolist() == [-7.0] * 64


def test_the_newest_are_kept_and_a_later_one_is_from_a_past_that_is_over(tmp_path: Path):
    for step in (1, 2, 3, 9):
        put(tmp_path, step)
    assert steps(tmp_path) == [3, 9]
    assert NUM_CHECKPOINTS == 2
    put(tmp_path, 5)  # the run went back behind 9, which was damaged
    assert steps(tmp_path) == [3, 5]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_one_flipped_bit_is_found_and_the_file_named(tmp_path: Path, name: str):
    put(tmp_path, 1)
    file = put(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)
    latest, complaints = read_latest(tmp_path)
    assert latest
    assert latest.state["step"] == 1
    assert len(complaints) == 1
    assert str(file) in complaints[0]


@pytest.mark.parametrize("content", ["", '{"step": 2, "checks', "[]", "{}", '{"checksum": 1}', "\0\0\0"])
def test_a_half_written_state_is_damage(tmp_path: Path, content: str):
    put(tmp_path, 1)
    (put(tmp_path, 2) / "state.json").write_text(content)
    latest, complaints = read_latest(tmp_path)
    assert latest
    assert latest.state["step"] == 1
    assert "state.json is damaged" in complaints[0]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_missing_file_is_damage(tmp_path: Path, name: str):
    (put(tmp_path, 1) / name).unlink()
    latest, complaints = read_latest(tmp_path)
    assert latest is None
    assert name in complaints[0]


def test_a_state_of_another_checkpoint_does_not_fit(tmp_path: Path):
    first, second = put(tmp_path, 1), put(tmp_path, 2)
    shutil.copy(first / "state.json", second / "state.json")
    with pytest.raises(ValueError, match=r"step-00000002/model.safetensors is damaged"):
        read(second)


def test_nothing_there_is_no_damage(tmp_path: Path):
    assert read_latest(tmp_path) == (None, [])


_CHANGES = ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


def _counted(do: Callable, left: Iterator[int]) -> Callable:
    def done(*words: object, **named: object) -> object:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(*words, **named)

    return done


def dying(act: Callable[[], object]) -> Iterator[None]:
    """For n = 0, 1, ...: `act` in a process that dies before its n-th change of the disk, without a word."""
    n = code = -1
    while code != 0:
        n += 1
        pid = os.fork()
        if pid == 0:
            left = iter(range(n))
            for owner, names in ((checkpoint, ("save_file",)), (os, _CHANGES)):
                for name in names:
                    setattr(owner, name, _counted(getattr(owner, name), left))
            try:
                act()
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        yield


def test_a_process_killed_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path):
    put(tmp_path, 1), put(tmp_path, 2)
    (tmp_path / "checkpoints" / "step-00000003").mkdir()  # damaged: to be replaced
    whole = shutil.copytree(tmp_path, tmp_path.parent / "whole")
    collected = []
    for _ in dying(lambda: put(tmp_path, 3)):
        latest, _ = read_latest(tmp_path)
        assert latest
        collected.append(latest.state["step"])
        assert latest.model["weight"].tolist() == [float(latest.state["step"])] * 64
        put(tmp_path, 4)  # who comes after tidies up
        assert not list((tmp_path / "checkpoints").glob(".*"))
        assert steps(tmp_path)[-1] == 4
        shutil.rmtree(tmp_path)
        shutil.copytree(whole, tmp_path)
    assert len(collected) > 12
    assert collected == sorted(collected)  # the old one up to the rename, the new one from there on
    assert set(collected) == {2, 3}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_in_the_middle_costs_this_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
):
    put(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    for place in ("sync", "write_json", "save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, place, fail)
            with pytest.raises(OSError, match=os.strerror(error)):
                put(tmp_path, 2)
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert read_latest(tmp_path)[0]


def test_a_real_limit_on_the_size_of_files_is_an_error_and_no_half_file(tmp_path: Path):
    put(tmp_path, 1)
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            put(tmp_path, 2)
            os._exit(1)
        except OSError as failure:
            os._exit(0 if "model.safetensors could not be written" in str(failure) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_moments_go_by_name_and_continue_just_so():
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    twin = nn.Linear(4, 2)
    twin.load_state_dict(model.state_dict())
    other = torch.optim.AdamW([twin.bias, twin.weight], fused=True)  # another order
    restore_optimizer(twin, other, optimizer_tensors(model, optimizer))
    step(model, optimizer), step(twin, other)
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)
