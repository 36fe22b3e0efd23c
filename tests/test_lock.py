"""Locks: one process at a time, named to the others, and free as soon as it ends."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unveil.runs import lock as locking
from unveil.runs.lock import hold, holder, is_dead

_HOLD = (
    "import sys; from pathlib import Path; from unveil.runs.lock import hold\n"
    "with hold(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
)


def test_a_lock_is_held_once(tmp_path: Path):
    with hold(tmp_path / "a") as first, hold(tmp_path / "a") as second, hold(tmp_path / "b") as other:
        assert first is None
        assert f"process {os.getpid()} on " in str(second)
        assert other is None
        assert holder(tmp_path / "a") == second
    assert holder(tmp_path / "a") is None
    with hold(tmp_path / "a") as again:
        assert again is None


def test_it_is_free_after_an_error(tmp_path: Path):
    with pytest.raises(KeyError), hold(tmp_path / "a"):
        raise KeyError
    assert holder(tmp_path / "a") is None


def test_many_at_once_and_one_has_it(tmp_path: Path):
    began, got = threading.Barrier(16), []

    def take() -> None:
        began.wait()
        with hold(tmp_path / "locks" / "a") as other:
            got.append(other is None)
            time.sleep(2.0 if other is None else 0.0)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 15 + [True]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_frees_its_lock(tmp_path: Path, ending: signal.Signals):
    words = [sys.executable, "-c", _HOLD, str(tmp_path / "a")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "in\n"
        assert f"process {process.pid} on " in str(holder(tmp_path / "a"))
        with hold(tmp_path / "a") as other:
            assert f"process {process.pid} on " in str(other)
        process.send_signal(ending)
        process.wait()
        assert holder(tmp_path / "a") is None
        assert is_dead(tmp_path / "a")
        with hold(tmp_path / "a") as other:
            assert other is None
            assert not is_dead(tmp_path / "a")


OWNER = "process {} on {}, since {}"


@pytest.mark.parametrize("locks", [True, False])
def test_the_owner_of_a_lock_is_dead_where_its_process_is(tmp_path: Path, monkeypatch, locks: bool):
    """On its own machine: by the lock, or, where the file system has none, by the process and its start."""
    owner, here = tmp_path / "a.owner", platform.node()
    assert not is_dead(tmp_path / "a")
    (tmp_path / "a").touch()
    assert not is_dead(tmp_path / "a"), "of nobody it is not known"
    if not locks:
        monkeypatch.setattr(locking.FileLock, "acquire", fail)
    now = locking._begun(os.getpid())
    owner.write_text(OWNER.format(os.getpid(), here, now))
    assert is_dead(tmp_path / "a") == locks, "it lives, and holds the lock no more"
    owner.write_text(OWNER.format(os.getpid(), here, "2020-01-01T00:00:00+00:00"))
    assert is_dead(tmp_path / "a"), "another process has its number now"
    owner.write_text(f"process {os.getpid()} on {here}")  # of an earlier release
    assert is_dead(tmp_path / "a") == locks


def fail(*_: object, **__: object) -> None:
    raise OSError("no locks here")


def test_an_owner_on_another_machine_is_dead_once_it_gives_no_sign_of_life(tmp_path: Path, monkeypatch):
    owner = tmp_path / "a.owner"
    (tmp_path / "a").touch()
    owner.write_text(OWNER.format(12, "elsewhere", "2026-01-01T00:00:00+00:00"))
    assert not is_dead(tmp_path / "a")
    os.utime(owner, (time.time() - 700,) * 2)
    assert is_dead(tmp_path / "a")
    monkeypatch.setattr(locking, "_PULSE", 0.01)
    with hold(tmp_path / "a"):
        os.utime(owner, (time.time() - 700,) * 2)
        for _ in range(500):
            if time.time() - owner.stat().st_mtime < 60:
                return
            time.sleep(0.01)
    raise AssertionError("its owner gave no sign of life")


@pytest.mark.parametrize("locks", ["of each machine", "none"])
def test_a_lock_is_not_taken_from_a_living_owner_on_another_machine(tmp_path: Path, monkeypatch, locks: str):
    """On a drive whose locks other machines do not see: its file tells that it lives, has let go, or is silent."""
    path, owner = tmp_path / "a", tmp_path / "a.owner"
    path.touch()
    if locks == "none":
        monkeypatch.setattr(locking.FileLock, "acquire", fail)
    monkeypatch.setattr(locking, "_PULSE", 0.02)
    line = OWNER.format(12, "elsewhere", "2026-01-01T00:00:00+00:00")
    owner.write_text(line)
    with hold(path) as other:
        assert str(other).startswith(line)
    assert str(holder(path)).startswith(line)
    beat = threading.Timer(0.1, os.utime, (owner,))
    beat.start()
    with hold(path, waits=True) as other:
        assert "a sign of life" in str(other)
    beat.join()
    assert owner.read_text() == line
    monkeypatch.setattr(locking, "_DEAD", 0.2)
    with hold(path, waits=True) as other:
        assert other is None, "it was silent"
        assert f"process {os.getpid()} on " in owner.read_text()
    assert owner.read_text().endswith(", ended")
    owner.write_text(f"{line}, ended")
    monkeypatch.setattr(locking, "_DEAD", 600.0)
    assert holder(path) is None
    assert is_dead(path)
    with hold(path) as other:
        assert other is None, "it has let go"


def test_without_locks_the_file_of_the_owner_is_one(tmp_path: Path, monkeypatch):
    (tmp_path / "a").touch()
    monkeypatch.setattr(locking.FileLock, "acquire", fail)
    with hold(tmp_path / "a") as first, hold(tmp_path / "a") as second:
        assert first is None
        assert str(second) == holder(tmp_path / "a") == (tmp_path / "a.owner").read_text()
    assert holder(tmp_path / "a") is None


def test_the_file_of_the_owner_is_no_way_out_of_the_folder(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.owner").symlink_to(tmp_path / "mine")
    with hold(tmp_path / "a") as other:
        assert other is None
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "a.owner").unlink()
    os.mkfifo(tmp_path / "a.owner")
    assert not is_dead(tmp_path / "a"), "it is not waited for"


def test_asking_for_the_holder_makes_no_file(tmp_path: Path):
    assert holder(tmp_path / "a") is None
    assert list(tmp_path.iterdir()) == []
