"""Processes meet afresh, and watch over one another: threads on one store stand for them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from unveil.runs.console import RankLost
from unveil.training import watch as watching
from unveil.training.rendezvous import NotMet, _meet
from unveil.training.watch import Watch

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


def meet(store: dist.Store, size: int, patience: float = 20.0) -> list[str]:
    with ThreadPoolExecutor(size) as pool:
        own = [store.clone() for _ in range(size)]
        jobs = [pool.submit(_meet, own[r], r, size, timedelta(seconds=patience)) for r in reversed(range(size))]
        return [job.result() for job in jobs]


def test_processes_agree_on_a_name_that_no_earlier_start_has(store: dist.Store):
    names = [meet(store, size) for size in (3, 3, 2)]  # a start finds all that those before it have written
    assert [len(set(one)) for one in names] == [1, 1, 1]
    assert len({one[0] for one in names}) == 3


def test_a_rank_that_is_started_again_while_the_others_wait_is_met(store: dist.Store):
    """Rank zero first lists a process that has died since; what it agreed to is not what the new one agrees to."""
    with ThreadPoolExecutor(2) as pool:
        store.set("unveil/hello/1", "dead")
        first = pool.submit(_meet, store.clone(), 0, 2, timedelta(seconds=20))
        while not store.check(["unveil/list"]):
            time.sleep(0.01)
        assert _meet(store.clone(), 1, 2, timedelta(seconds=20)) == first.result()


def test_who_does_not_come_is_not_waited_for_for_ever(store: dist.Store):
    with pytest.raises(NotMet, match="not all of 2 processes have come"):
        _meet(store, 0, 2, timedelta(seconds=0.3))


def watches(store: dist.Store, size: int = 3) -> list[Watch]:
    return [Watch(store.clone(), rank, size) for rank in range(size)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BEAT", 0.05)
    monkeypatch.setattr(watching, "PATIENCE", 1.0)


@pytest.mark.usefixtures("quick")
def test_a_rank_that_does_not_beat_is_named_by_one_of_the_others(store: dist.Store):
    zero, one, two = watches(store)
    with zero.running(), two.running():
        store.set("who/1", "rank 1 (process 7 on elsewhere)")
        lost = [w.explain(GLOO) for w in (zero, two)]
    assert [str(error).partition(";")[0] for error in lost] == [
        "rank 1 (process 7 on elsewhere) ended without a word"
    ] * 2
    assert [error.speaks for error in lost] == [True, False]
    assert "the same command goes on from the last checkpoint" in str(lost[0])
    assert "gloo" not in str(lost[0])
    assert one.rank == 1


@pytest.mark.usefixtures("quick")
def test_a_process_of_this_machine_that_is_gone_is_named_at_once(store: dist.Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "PATIENCE", 600.0)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    zero, _ = watches(store, 2)
    with zero.running():
        store.set("who/1", f"rank 1 (process {process.pid} on {platform.node()})")
        assert f"rank 1 (process {process.pid} on " in str(zero.explain(GLOO))


@pytest.mark.usefixtures("quick")
def test_a_rank_that_fails_says_why_and_the_others_repeat_it(store: dist.Store):
    zero, one, two = watches(store)
    with zero.running(), two.running():
        with pytest.raises(OSError, match="disk"), one.running():
            raise OSError("the disk is full")
        lost = two.explain(GLOO)
        assert f"rank 1 (process {os.getpid()} on {platform.node()}) has stopped: OSError: the disk is full" in str(
            lost
        )
        assert [lost.speaks, zero.explain(GLOO).speaks] == [False, True]


@pytest.mark.usefixtures("quick")
def test_other_errors_are_not_taken_for_lost_ranks(store: dist.Store):
    zero = watches(store)[0]
    with pytest.raises(RuntimeError, match="shapes"), zero.explained():
        raise RuntimeError("shapes do not match")
    with zero.running(), pytest.raises(RankLost), zero.explained():
        raise GLOO


@pytest.mark.usefixtures("quick")
def test_rank_zero_finds_a_silent_rank_before_any_connection_breaks(store: dist.Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "SILENT", 4)
    zero, one = watches(store, 2)
    with zero.running():
        with one.running():
            wait(lambda: bool(one._beats([0])[0]))
            time.sleep(0.5)
            assert not zero._verdict()
        wait(lambda: bool(zero._verdict()))
    assert zero._verdict()["ranks"] == [1]


def wait(until: Callable[[], bool]) -> None:
    for _ in range(1000):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError


HANG = """
import ctypes, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from unveil.training import watch
rank, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
watch.BEAT, watch._FAULT = 0.05, 0.5
store = dist.TCPStore("localhost", port, is_master=False, timeout=timedelta(seconds=20))
dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=2)
def hang():
    ctypes.PyDLL(None).sleep(600) if how == "interpreter" else time.sleep(600)
with (w := watch.Watch(store.clone(), rank, 2, hang=1.0)).running():
    w.before_end = lambda reason: print("noted:", reason.partition(";")[0], flush=True)
    w.tick("reading data")
    if rank == 1:
        hang()
    w.tick("the update of step 3")
    dist.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize(("how", "status"), [("thread", 75), pytest.param("interpreter", 1, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_ends_all_with_its_stack_and_is_named(store: dist.Store, how: str, status: int):
    """Rank one hangs, also with Python's lock held, which no thread of Python could notice."""
    words = [sys.executable, "-c", HANG]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*words, str(rank), str(store.port), how], **pipes) for rank in (0, 1)]
    (out, zero), (_, one) = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [75, status]
    assert "in hang" in one  # its stack
    assert "in all_reduce" in zero
    reason = "hangs at reading data, in <string>, line" if how == "thread" else "does not answer, without progress"
    assert f"error: rank 1 (process {both[1].pid} on {platform.node()}) {reason}" in zero
    assert "error: rank" not in one
    assert f"noted: rank 1 (process {both[1].pid} on " in out
