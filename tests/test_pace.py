"""A run ends near the time that it was given, whatever the machine does, and says why it is slow."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import unveil
import unveil.training.loop as loop_module
from test_training import CPU, build
from tiny_runs import write_images
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.runs.checkpoint import read_latest
from unveil.runs.folder import RunFolder
from unveil.runs.load import Counters, LoadMeter, paused_seconds
from unveil.runs.run_config import RunConfig
from unveil.training.loop import Loop
from unveil.training.pace import Pace, Plan, Schedule


class Clock:
    """A machine whose updates take `update` seconds; time passes in updates alone."""

    def __init__(self, update: float):
        self.time, self.update = 1000.0, update

    def monotonic(self) -> float:
        return self.time

    perf_counter = monotonic


def quiet(*_: object) -> LoadMeter:
    return LoadMeter(lambda: Counters(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 2)


def loop_of(tmp_path: Path, clock: Clock, plan: Plan | None, monkeypatch: pytest.MonkeyPatch, **options) -> Loop:
    """A loop whose updates take the clock's time, and nothing of this machine's."""
    monkeypatch.setattr(loop_module, "time", clock)
    monkeypatch.setattr(loop_module, "Pace", lambda plan, compiled: Pace(plan, compiled, quiet, clock.monotonic))
    recipe = build(tmp_path, **{"epochs": 20, "warmup_epochs": 2, **options})
    loader = Loader(open_source(str(write_images(tmp_path / "images"))), recipe.view, 10, 0, workers=1)
    (tmp_path / "run").mkdir(exist_ok=True)
    loop = Loop(
        RunFolder(tmp_path / "run"), recipe, loader, replace(CPU, val_every=2.0), 0, lambda *_: None, {}, plan=plan
    )
    update = loop_module.Trainer.update

    def taking_time(self, batch, lr):
        clock.time += clock.update
        return update(self, batch, lr)

    monkeypatch.setattr(loop_module.Trainer, "update", taking_time)
    return loop


def lines(tmp_path: Path) -> list[dict]:
    every = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if line["kind"] == "step"]


def test_a_run_that_is_as_fast_as_planned_keeps_its_schedule(tmp_path, monkeypatch, capsys):
    loop = loop_of(tmp_path, Clock(1.0), Plan(1.0, 80.0), monkeypatch)
    loop.train(threading.Event(), lambda _: None)
    rates = [line["lr"] for line in lines(tmp_path)]
    assert len(rates) == 80
    assert rates == [loop.recipe.optim.rate(step, 80, 4) for step in range(80)]
    assert "note:" not in capsys.readouterr().err


def test_a_run_that_is_slower_ends_at_its_time_through_the_whole_schedule(tmp_path, monkeypatch, capsys):
    clock = Clock(4.0)
    loop = loop_of(tmp_path, clock, Plan(1.0, 80.0), monkeypatch, stages=2)
    loop.train(threading.Event(), lambda _: None)
    written = lines(tmp_path)
    assert clock.time - 1000 == pytest.approx(80, abs=8)
    assert written[-1]["step"] == loop.schedule.total == pytest.approx(20, abs=2)
    peak = max(line["lr"] for line in written)
    assert peak > 0.9 * loop.recipe.optim.peak_lr
    assert written[-1]["lr"] < 0.05 * peak
    assert loop.schedule.ends[0] == pytest.approx(10, abs=2)  # half of the plan is the first stage
    told = capsys.readouterr().err
    assert told.count("note: an update takes 4 s, 4.0 times as long as before training") == 1
    assert "updates instead of 80 fit in 80 s" in told


def test_a_run_of_few_slow_updates_ends_after_one_more(tmp_path, monkeypatch):
    clock = Clock(35.0)
    loop_of(tmp_path, clock, Plan(10.0, 60.0), monkeypatch, epochs=1.5).train(threading.Event(), lambda _: None)
    assert clock.time - 1000 == 70  # six updates would have taken 210 seconds


def test_what_a_busy_while_took_away_is_given_back(tmp_path, monkeypatch):
    clock = Clock(4.0)
    loop = loop_of(tmp_path, clock, Plan(1.0, 80.0), monkeypatch)
    update = loop_module.Trainer.update

    def quiet_later(self, batch, lr):
        clock.update = 4.0 if clock.time < 1020 else 1.0
        return update(self, batch, lr)

    monkeypatch.setattr(loop_module.Trainer, "update", quiet_later)
    loop.train(threading.Event(), lambda _: None)
    assert clock.time - 1000 == pytest.approx(80, abs=10)
    assert loop.schedule.total > 50  # 20, had the machine stayed as slow


def test_epochs_that_were_given_stay(tmp_path, monkeypatch, capsys):
    clock = Clock(4.0)
    loop = loop_of(tmp_path, clock, Plan(1.0), monkeypatch, epochs=5)
    loop.train(threading.Event(), lambda _: None)
    assert len(lines(tmp_path)) == 20
    assert "4.0 times as long as before training: no cause is seen" in capsys.readouterr().err


def test_a_shortened_run_that_was_stopped_goes_on_with_its_schedule(tmp_path, monkeypatch):
    clock, stop = Clock(4.0), threading.Event()
    loop = loop_of(tmp_path, clock, Plan(1.0, 80.0), monkeypatch)
    update = loop_module.Trainer.update

    def stopping(self, batch, lr):
        if clock.time >= 1036:
            stop.set()
        return update(self, batch, lr)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Trainer, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            loop.train(stop, lambda _: None)
    found, _ = read_latest(tmp_path / "run")
    assert found
    assert found.state["schedule"]["ends"] == loop.schedule.ends
    again = Loop(loop.run, loop.recipe, loop.loader, loop.settings, 0, lambda *_: None, {}, plan=Plan(1.0, 80.0))
    again.train(threading.Event(), lambda _: None, found)
    assert again.schedule.total == loop.schedule.total
    assert clock.time - 1000 == pytest.approx(80, abs=8)


def test_every_stage_has_a_step_however_little_time_is_left():
    schedule = Schedule([10, 20, 30])
    schedule.change(step=4, stage=0, steps_left=1)
    assert schedule.ends == [5, 6, 7]
    assert [schedule.at(4, 0), schedule.at(5, 1), schedule.at(6, 2)] == [
        4.0,
        pytest.approx(12.67, abs=0.01),
        pytest.approx(21.33, abs=0.01),
    ]
    again = Schedule([10, 20, 30])
    again.restore(json.loads(json.dumps(schedule.state)))
    assert (again.ends, again.at(6, 2)) == (schedule.ends, schedule.at(6, 2))
    assert Schedule([3]).state == {}


def counted(threads: int = 2, **after: float) -> list[str]:
    """The causes after 100 seconds of these counters, on two cores."""
    fresh = Counters(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    reads = iter([fresh, replace(fresh, time=100.0, **after)])
    return LoadMeter(lambda: next(reads), 2).causes(threads)


def test_what_keeps_a_run_from_its_cores_is_named():
    assert counted(busy=100.0, own=95.0) == []
    (others,) = counted(busy=200.0, own=60.0)
    assert "other programs use 1.4 cores, and this run may use 2" in others
    assert others.endswith("end them, or give --threads 1")
    assert counted(threads=1, busy=200.0, own=60.0)[0].endswith("; end them")
    (quota,) = counted(busy=100.0, own=95.0, paused=40.0)
    assert "the CPU quota of the container stops it (0.4 s in each second" in quota
    (stolen,) = counted(busy=150.0, own=95.0, stolen=50.0)
    assert "25% of the CPU time to other virtual machines" in stolen
    (swapped,) = counted(busy=100.0, own=95.0, swapped=4.0 * 2**30)
    assert "4.0 GB were swapped" in swapped


def test_the_first_pass_over_images_that_stay_in_memory_says_nothing_of_later_ones():
    for budget, limit in ((600.0, 60.0), (30.0, 3.0), (None, 60.0)):
        pace = Pace(Plan(1.0, budget), False, quiet)
        assert not pace.tells(limit - 1, is_first_pass=True)
        assert pace.tells(limit + 1, is_first_pass=True)
        assert pace.tells(0.0, is_first_pass=False)


def test_compiling_waiting_and_validating_are_named():
    clock = Clock(1.0)
    pace = Pace(Plan(1.0), True, quiet, clock.monotonic)
    pace.start_stage(0.0)
    clock.time += 60
    pace.add(1, 0.0)
    clock.time += 20
    pace.add(4, 16.0)
    with pace.paused():
        clock.time += 80
    told = pace.warning(100, 100) or ""
    assert "an update takes 5 s, 5.0 times" in told
    assert "compiling the step took 60 s" in told
    assert "validation and saving take 50% of the time" in told
    pace.add(1, 40.0)
    assert pace.warning(100, 100) is None  # once


@pytest.mark.parametrize(
    ("files", "seconds"),
    [
        ({"cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n"}, 2.5),
        ({"cpu/cpu.stat": "nr_throttled 3\nthrottled_time 1500000000\n"}, 1.5),
        ({"cpu.stat": "usage_usec 5\n"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_pauses_of_a_quota_are_read(tmp_path, files, seconds):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert paused_seconds(tmp_path) == seconds


def test_the_counters_of_this_machine_go_up():
    meter = LoadMeter()
    sum(range(10**6))
    after = meter.read()
    assert after.time > meter.before.time
    assert after.own >= meter.before.own > 0
    assert after.busy >= meter.before.busy >= 0


def test_a_command_that_ran_out_of_time_says_how_many_updates_it_made(tmp_path, monkeypatch):
    """From `--minutes` to `run.json`: the run is planned with a step that turns out slower."""
    data = str(write_images(tmp_path / "images"))
    monkeypatch.setattr("unveil.training.setup.time_with_data", lambda *_: 0.01)
    monkeypatch.setattr("unveil.training.pace.LATE_SECONDS", 0.5)
    update = loop_module.Trainer.update

    def slow(self, batch, lr):
        time.sleep(0.25)
        return update(self, batch, lr)

    monkeypatch.setattr(loop_module.Trainer, "update", slow)
    options = {"size": "nano", "patch": 8, "image_size": (16,), "batch_size": 19, "decoder_dim": 16, "decoder_depth": 1}
    run = unveil.pretrain("mae", data=data, out=tmp_path / "run", minutes=0.05, decoder_heads=2, **options)
    stored = json.loads((run / "run.json").read_text())
    assert stored["plan"] == {"update_seconds": pytest.approx(0.19), "budget": pytest.approx(3.0)}
    assert stored["updates"]["planned"] == pytest.approx(16, abs=1)
    assert 5 <= stored["updates"]["made"] <= 14
    assert RunConfig.read(run).epochs == stored["updates"]["epochs"] == stored["updates"]["made"] / 2
