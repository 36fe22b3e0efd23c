"""Locks: one process at a time, named to the others, and free as soon as it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unveil.runs.lock import hold, holder

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
        with hold(tmp_path / "a") as other:
            assert other is None


def test_asking_for_the_holder_makes_no_file(tmp_path: Path):
    assert holder(tmp_path / "a") is None
    assert list(tmp_path.iterdir()) == []
