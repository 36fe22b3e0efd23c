"""A disk that is full, read-only, slow or failing while a run trains: one error, nothing lost, and the run goes on."""

from __future__ import annotations

import errno
import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crash_journal import watching
from tiny_runs import TRAIN, Place, facts, journal, weights, write_images, write_recipe
from unveil.cli import main
from unveil.runs.checkpoint import read_latest

WORDS = (*TRAIN, "--epochs", "2", "--save-minutes", "0", "--threads", "1", "--workers", "1")
LAST = 2  # steps: an epoch is one
CHANGES = {"write", "fsync", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
FAULTS = {  # an error, of what, and whether it stays
    "full": (errno.ENOSPC, {"write", "fsync", "os.mkdir"}, True),
    "full once": (errno.ENOSPC, {"write", "fsync", "os.mkdir"}, False),
    "quota": (errno.EDQUOT, {"write", "fsync"}, True),
    "read-only": (errno.EROFS, CHANGES - {"fsync"}, True),
    "permission lost": (errno.EACCES, CHANGES - {"fsync"}, True),
    "no write": (errno.EIO, {"fsync"}, False),
    "no read": (errno.EIO, {"read"}, False),
}


@dataclass
class Disk:
    """A folder in which operations fail: the first in question, or all from there on."""

    folder: Path
    code: int
    events: set[str]
    stays: bool
    first: int
    count: int = 0
    failed: list[str] = field(default_factory=list)

    def meet(self, event: str, what: Any) -> None:
        path = what
        if isinstance(what, int):
            path = str(self.folder)
            with suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{what}")
        if event not in self.events or not str(path).startswith(str(self.folder)):
            return
        self.count += 1
        if self.count == self.first or (self.stays and self.count > self.first):
            self.failed.append(f"{event} {path}")
            raise OSError(self.code, os.strerror(self.code), str(path))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("storage")
    place = Place(path, write_recipe(path), str(write_images(path / "images", 12)))
    assert place.pretrain(*WORDS, out="whole") == 0
    return place


def operations(home: Place, events: set[str]) -> int:
    """How many operations of these kinds a training makes in its folder."""
    disk = Disk(home.path / "counted", 0, events, False, -1)
    with watching(disk.meet):
        assert home.pretrain(*WORDS, "--overwrite", out="counted") == 0
    return disk.count


def trained_on_a_failing_disk(
    home: Place, name: str, fault: str, first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train while the disk fails, then when it does not: an error of one sentence and a hint, and the same bits."""
    code, events, stays = FAULTS[fault]
    run = home.path / name
    disk = Disk(run, code, events, stays, first)
    capsys.readouterr()
    with watching(disk.meet):
        status = home.pretrain(*WORDS, out=name)
    text = capsys.readouterr().err
    case = f"{fault} from operation {first}, {disk.failed[:1]}: {text[-600:]}"
    assert status in (0, 2), case
    assert "Traceback" not in text, case
    assert "fault of unveil" not in text, case
    latest, _ = read_latest(run)
    if status:
        errors = [line for line in text.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, case
        said = text[text.index(errors[0]) :]
        assert os.strerror(code) in said, case
        assert any(word in said for word in ("hint:", "same command", "--out")), case
    elif disk.failed and stays:
        assert "warning" in text, case
    stored = latest.state["step"] if latest else 0
    assert home.pretrain(*WORDS, out=name) == 0, case + capsys.readouterr().err
    assert weights(run, LAST) == weights(home.path / "whole", LAST), case
    assert stored <= LAST
    assert facts(run)["status"] == "finished", case
    assert not list(run.rglob("*.part")), case


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_outlives_a_failing_disk(home: Place, fault: str, capsys: pytest.CaptureFixture[str]):
    first = random.Random(fault).randint(2, 60)
    trained_on_a_failing_disk(home, fault, fault, first, capsys)


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_outlives_a_disk_that_fails_at_any_operation(home: Place, fault: str, capsys):
    every = int(os.environ.get("UNVEIL_EVERY", 1))
    tried = 0
    for first in range(1, operations(home, FAULTS[fault][1]) + 1, every):
        trained_on_a_failing_disk(home, f"{fault} {first}", fault, first, capsys)
        tried += 1
    with capsys.disabled():
        print(f" {fault}: {tried}", end="")


def test_a_slow_disk_and_a_clock_that_jumps_back_change_nothing(home: Place, monkeypatch: pytest.MonkeyPatch):
    now, began = time.time, time.time()

    def slow(event: str, what: Any) -> None:
        if event == "os.rename" and str(home.path) in str(what):
            time.sleep(0.02)

    monkeypatch.setattr(time, "time", lambda: now() - (86400 if now() > began + 0.3 else 0))
    with watching(slow):
        assert home.pretrain(*WORDS, out="slow") == 0
    assert weights(home.path / "slow", LAST) == weights(home.path / "whole", LAST)
    assert [line["step"] for line in journal(home.path / "slow", "step")] == [1, 2]
    assert all(line["time"] >= 0 for line in journal(home.path / "slow", "step"))


def test_a_result_that_cannot_be_written_is_an_error_and_the_run_stays(home: Place, capsys):
    run = home.path / "whole"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and ".lock" not in p.name}
    disk = Disk(run, errno.ENOSPC, {"write", "fsync", "os.mkdir"}, True, 1)
    with watching(disk.meet):
        words = ("--data", home.data, "--protocol", "knn", "--threads", "1")
        assert main(["evaluate", str(run), *words]) == 2
        assert main(["report", str(run)]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("hint: make room on the disk; then the same command goes on") == 2
    assert {p: p.read_bytes() for p in before} == before
    assert not list(run.rglob("*.part"))
