"""Atomic writes: whatever fails, the old file stays whole and nothing stays beside it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unveil.runs import atomic
from unveil.runs.atomic import replacing, write_bytes, write_json, write_text
from unveil.runs.checkpoint import save, write_weights
from unveil.runs.folder import RunFolder


def weights(file: Path, value: float) -> None:
    write_weights(file, {"weight": torch.full((64,), value)}, {})


def arrays(file: Path, value: float) -> None:
    with replacing(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, value=np.array([value]))


WRITERS: dict[str, tuple[Callable[[Path, float], None], Callable[[Path], float]]] = {
    "bytes": (lambda file, value: write_bytes(file, str(value).encode()), lambda file: float(file.read_bytes())),
    "text": (lambda file, value: write_text(file, f"± {value}"), lambda file: float(file.read_text("utf-8")[2:])),
    "json": (lambda file, value: write_json(file, {"a": value}), lambda file: json.loads(file.read_text())["a"]),
    "weights": (weights, lambda file: float(load_file(file)["weight"][63])),
    "arrays": (arrays, lambda file: float(np.load(file)["value"][0])),
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest):
    return WRITERS[request.param]


def test_a_file_is_made_and_replaced(tmp_path: Path, writer):
    write, read = writer
    file = tmp_path / "a.npz"
    for value in (1.0, 2.0):
        write(file, value)
        assert read(file) == value
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, writer, step: str, monkeypatch: pytest.MonkeyPatch
):
    write, read = writer
    file = tmp_path / "a.npz"
    write(file, 1.0)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            write(file, 2.0)
    assert read(file) == 1.0
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [TypeError, KeyboardInterrupt])
def test_a_writer_that_fails_half_way_leaves_the_old_file(tmp_path: Path, error: type[BaseException]):
    file = tmp_path / "a"
    write_text(file, "old")

    def fail_half_way() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_content_that_is_no_json_leaves_the_old_file(tmp_path: Path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_is_synced_before_its_name_and_the_folder_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []
    rename = os.replace
    monkeypatch.setattr(atomic, "sync", lambda path: steps.append("folder" if path.is_dir() else "file"))
    monkeypatch.setattr(os, "replace", lambda *paths, **named: (steps.append("rename"), rename(*paths, **named)))
    write_text(tmp_path / "a", "new")
    assert steps == ["file", "rename", "folder"]


def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is really synced and renamed from here on, in order: ("fsync", path) and ("rename", new path)."""
    calls: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synced(descriptor: int) -> None:
        calls.append(("fsync", os.path.realpath(f"/dev/fd/{descriptor}")))
        fsync(descriptor)

    def moved(do: Callable[..., None]) -> Callable[..., None]:
        def move(old: object, new: object, **named: Any) -> None:
            do(old, new, **named)
            calls.append(("rename", os.path.realpath(str(new))))

        return move

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", moved(rename))
    monkeypatch.setattr(os, "replace", moved(replace))
    return calls


def test_a_file_is_really_synced_before_it_gets_its_name_and_its_folder_after(tmp_path: Path, monkeypatch):
    calls = disk_calls(monkeypatch)
    write_text(tmp_path / "a", "new")
    (kind, temporary), *rest = calls
    assert kind == "fsync"
    assert Path(temporary).name.startswith(".a.")
    assert rest == [("rename", str(tmp_path / "a")), ("fsync", str(tmp_path))]


def test_a_checkpoint_is_really_synced_before_it_gets_its_name_and_its_folder_after(tmp_path: Path, monkeypatch):
    calls = disk_calls(monkeypatch)
    tensors = {"weight": torch.zeros(8)}
    final = save(tmp_path, 3, tensors, tensors, {"stage": 0}, {})
    whole = calls.index(("rename", str(final)))
    before = {path for kind, path in calls[:whole] if kind == "fsync"}
    partial = final.with_name(".step-00000003")
    names = {f"{partial}/{name}" for name in ("model.safetensors", "optimizer.safetensors")}
    assert before > {*names, str(partial)}
    assert any(".state.json." in path for path in before)
    last_of_folder = max(i for i, call in enumerate(calls) if call == ("fsync", str(partial)))
    assert last_of_folder > max(
        i for i, (_, path) in enumerate(calls[:whole]) if path.endswith((".safetensors", ".json"))
    )
    assert calls[whole + 1 :] == [("fsync", str(tmp_path / "checkpoints"))]


def test_run_json_is_never_written_in_place(tmp_path: Path, monkeypatch):
    run = RunFolder(tmp_path)
    run.update_metadata(status="running")
    before = (tmp_path / "run.json").stat().st_ino
    calls = disk_calls(monkeypatch)
    with (tmp_path / "run.json").open() as reader:  # who reads it meanwhile reads the old one whole
        run.update_metadata(status="finished")
        assert json.load(reader) == {"status": "running"}
    assert (tmp_path / "run.json").stat().st_ino != before
    assert [kind for kind, _ in calls] == ["fsync", "rename", "fsync"]
