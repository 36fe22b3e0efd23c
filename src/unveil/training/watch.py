"""A watch over the processes of a group: which has ended without a word, and which makes no progress any more.

Each process beats in the store of the group. Where one is gone, the others name it in one sentence; where one hangs,
all write their stacks and end, since a job that waits for ever costs as much as one that computes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil
import torch.distributed as dist

from ..runs.console import RankLost, RankZeroFailed, Stopped

BEAT = 0.5  # seconds
SILENT = 120  # beats without a word from a rank, after which it is lost: a minute
PATIENCE = 6.0  # seconds to find out why a connection broke: a rank that lives beats twelve times
GRACE = 20.0  # seconds for the main thread to end by itself once the reason is known
_FAULT = 60.0  # seconds after which a process whose interpreter hangs, too, ends itself
_GO_ON = (
    "the same command goes on from the last checkpoint, with any number of processes that divides the batch; torchrun"
    " --max-restarts=3 does so by itself"
)


class Watch:
    """The watch of one process. `hang` are the seconds without progress after which the group ends; 0 for never.

    Beats are counted, not timed, so that a job that was suspended as a whole goes on.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, hang: float = 0.0):
        self.store, self.rank, self.size, self.hang = store, rank, size, hang
        self.phase, self.since = "start", 0  # what the main thread is at, and for how many beats
        self.is_explaining = False
        self.before_end: Callable[[str], None] = lambda reason: None  # what is to be noted where the process is ended
        self._counts: dict[int, tuple[bytes, int]] = {}  # of each rank that is watched: its last beat, and its age
        self._end, self._armed = threading.Event(), 0.0
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="unveil-watch", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Beat while the body runs; an error that ends it is told to the others, one of theirs is named here."""
        self.store.set(f"who/{self.rank}", f"rank {self.rank} (process {os.getpid()} on {platform.node()})")
        self._thread.start()
        try:
            yield
        except BaseException as error:
            with suppress(RuntimeError):
                self._leave(error)
            raise
        finally:
            self._end.set()
            faulthandler.cancel_dump_traceback_later()
            self._thread.join(timeout=5)

    def tick(self, phase: str) -> None:
        """The main thread has made progress, and is at this from now on."""
        self.phase, self.since = phase, 0
        now = time.monotonic()
        if self.hang and now - self._armed > min(10.0, self.hang / 4):
            self._armed = now  # a thread of C, for an interpreter that hangs as a whole
            faulthandler.dump_traceback_later(self.hang + _FAULT, exit=True)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error of the communication into RankLost, which names the rank that is gone."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, RankLost) or not _is_of_communication(error):
                raise
            raise self.explain(error) from error

    def explain(self, error: Exception) -> RankLost:
        """Why the communication failed: who has left and why, or who does not beat any more."""
        self.is_explaining = True
        try:
            return self._explain(error)
        except RuntimeError:  # the store is gone, which was rank zero's or its torchrun's
            return self._lost(f"rank 0, or the torchrun that started it, has ended without a word; {_GO_ON}", 1)

    def _explain(self, error: Exception) -> RankLost:
        others = [rank for rank in range(self.size) if rank != self.rank]
        first, began = self._beats(others), time.monotonic()
        silent = others
        while silent and time.monotonic() - began < PATIENCE:
            time.sleep(BEAT / 2)
            if verdict := self._verdict():
                return self._judged(verdict)
            left = {rank: self._read(f"left/{rank}") for rank in others if self.store.check([f"left/{rank}"])}
            if reasons := {rank: why for rank, why in left.items() if why.get("own")}:
                who = min(reasons)
                return self._lost(f"{self._who(who)} has stopped: {reasons[who]['reason']}", self._lowest(left))
            if dead := [rank for rank in others if rank not in left and self._is_dead(rank)]:
                silent = dead
                break
            now = self._beats(others)
            silent = [rank for rank in others if now[rank] == first[rank] and rank not in left]
        if not silent:
            reason = str(error).partition("\n")[0][:200]
            return self._lost(f"the connection between the processes broke ({reason}); {_GO_ON}", 0)
        return self._judged(self._settle({"reason": f"{self._names(silent)} ended without a word", "ranks": silent}))

    def _run(self) -> None:
        count, told = 0, 0
        while not self._end.wait(BEAT):
            count, self.since = count + 1, self.since + 1
            try:
                self.store.set(f"beat/{self.rank}", str(count))
                self._look()
                told = told + 1 if self._verdict() else 0
            except RuntimeError:  # the store is gone, as the main thread will find too
                told += 1
            if self.hang and self.since * BEAT > self.hang:
                self._hung()
                return
            if told * BEAT > GRACE:
                self._end_process()
                return

    def _look(self) -> None:
        """Rank zero watches all others, these watch rank zero."""
        watched = range(1, self.size) if self.rank == 0 else [0]
        beats = self._beats(watched)
        for rank, beat in beats.items():
            before, age = self._counts.get(rank, (b"", 0))
            self._counts[rank] = (beat, age + 1 if beat == before else 0)
        silent = [rank for rank in watched if self._counts[rank][1] > SILENT]
        if silent and not self._verdict():
            self._settle({"reason": f"{self._names(silent)} has been silent for a minute", "ranks": silent})

    def _hung(self) -> None:
        """Write the stack; who does not wait for others is to blame."""
        faulthandler.cancel_dump_traceback_later()
        minutes = self.since * BEAT / 60
        frames = list(_frames(sys._current_frames().get(self._main)))
        who = f"rank {self.rank} (process {os.getpid()} on {platform.node()})"
        print(f"{who} is at {self.phase} for {minutes:.3g} minutes:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        place = f"{frames[0].f_code.co_filename}, line {frames[0].f_lineno}" if frames else "nowhere"
        with suppress(RuntimeError):
            own = {"waits": _waits(frames), "phase": self.phase, "place": place}
            self.store.set(f"stuck/{self.rank}", json.dumps(own))
            others = [rank for rank in range(self.size) if rank != self.rank]
            before = self._beats(others)
            time.sleep(12 * BEAT)
            after = self._beats(others)
            stuck = {r: self._read(f"stuck/{r}") for r in range(self.size) if self.store.check([f"stuck/{r}"])}
            silent = [rank for rank in others if before[rank] == after[rank] and rank not in stuck]
            to_blame = silent or [rank for rank, one in stuck.items() if not one["waits"]]
            reasons = [
                f"{self._who(r)} "
                + (f"hangs at {stuck[r]['phase']}, in {stuck[r]['place']}" if r in stuck else "does not answer")
                for r in to_blame
            ]
            reason = "; ".join(reasons) or f"all {self.size} processes wait for one another at {self.phase}"
            self._settle({"reason": f"{reason}, without progress for {minutes:.3g} minutes", "ranks": to_blame})
        self._end_process()

    def _end_process(self) -> None:
        """End the process from this thread, as the main one does not."""
        try:
            lost = self._judged(self._verdict() or {"reason": "the store of the processes is gone", "ranks": [0]})
        except RuntimeError:
            lost = RankLost(f"the store of the processes is gone, and rank 0 with it; {_GO_ON}", self.rank == 1)
        with suppress(Exception):  # nothing may keep a hung process from ending
            self.before_end(str(lost))
        if lost.speaks:
            print(f"error: {lost}", file=sys.stderr, flush=True)
        os._exit(RankLost.status)

    def _leave(self, error: BaseException) -> None:
        """Tell the others that this process ends, and whether for a reason of its own."""
        own = not isinstance(error, (RankLost, RankZeroFailed, Stopped, KeyboardInterrupt))
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        self.store.set(f"left/{self.rank}", json.dumps({"own": own, "reason": reason}))

    def _settle(self, verdict: dict[str, Any]) -> dict[str, Any]:
        """The verdict that the whole group has: the first that one of them has found."""
        settled: dict[str, Any] = json.loads(self.store.compare_set("verdict", "", json.dumps(verdict)))
        return settled

    def _verdict(self) -> dict[str, Any]:
        return self._read("verdict") if self.store.check(["verdict"]) else {}

    def _judged(self, verdict: dict[str, Any]) -> RankLost:
        return self._lost(f"{verdict['reason']}; {_GO_ON}", self._lowest(verdict["ranks"]))

    def _lowest(self, gone: Sequence[int] | dict[int, Any]) -> int:
        """The rank that speaks for those that are left."""
        return next((rank for rank in range(self.size) if rank not in gone), 0)

    def _lost(self, sentence: str, speaker: int) -> RankLost:
        return RankLost(sentence, self.rank == speaker)

    def _names(self, ranks: Sequence[int]) -> str:
        return ", ".join(map(self._who, ranks))

    def _who(self, rank: int) -> str:
        return self.store.get(f"who/{rank}").decode() if self.store.check([f"who/{rank}"]) else f"rank {rank}"

    def _is_dead(self, rank: int) -> bool:
        """Whether a process of this machine is gone; one that has not been waited for is."""
        words = self._who(rank).rstrip(")").split()  # rank 1 (process 12 on host)
        if words[-1] != platform.node() or len(words) < 6:
            return False
        try:
            return bool(psutil.Process(int(words[3])).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def _beats(self, ranks: Sequence[int]) -> dict[int, bytes]:
        """The last beat of each rank; empty where it has made none."""
        keys = [f"beat/{rank}" for rank in ranks]
        if self.store.check(keys):
            return dict(zip(ranks, self.store.multi_get(keys), strict=True))
        return {r: self.store.get(key) if self.store.check([key]) else b"" for r, key in zip(ranks, keys, strict=True)}

    def _read(self, key: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.store.get(key))
        return content


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether gloo, NCCL or a store says this: gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "nccl", "tcpstore"))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _waits(frames: Sequence[FrameType]) -> bool:
    """Whether a stack waits for other processes: in a collective, or in the backward pass, in which gradients meet."""
    places = [(f.f_code.co_filename.replace(os.sep, "/"), f.f_code.co_name) for f in frames]
    return any("torch/distributed/" in file or name == "_engine_run_backward" for file, name in places)
