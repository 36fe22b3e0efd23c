"""The number of threads follows what else a machine does, and the share of a container."""

from __future__ import annotations

import json

import pytest
import torch

import unveil
from unveil.runs import hardware
from unveil.runs.threads import TRIAL_SECONDS, TRIAL_SHARE, AdaptiveThreads, use_threads
from unveil.training.config import PretrainConfig
from unveil.training.timing import adaptive_threads, choose_fastest
from unveil.training.trainer import Settings


@pytest.fixture(autouse=True)
def _restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock, and steps that take 1 s with all threads on a quiet machine and 1.3 s with one."""

    def __init__(self, most: int = 2):
        torch.set_num_threads(most)
        self.time, self.is_busy, self.used = 0.0, False, []
        self.threads = AdaptiveThreads(most, lambda: self.time)

    def run(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            with self.threads.step():
                self.used.append(torch.get_num_threads())
                several = torch.get_num_threads() > 1
                self.time += (10.0 if several else 2.0) if self.is_busy else (1.0 if several else 1.3)


def test_one_thread_computes_while_other_programs_keep_the_cores_busy():
    machine = Machine()
    machine.run(200)
    assert torch.get_num_threads() == 2
    machine.is_busy = True
    machine.run(200)
    assert torch.get_num_threads() == 1
    machine.is_busy = False
    machine.run(2.5 * (TRIAL_SECONDS + 20.0 / TRIAL_SHARE))
    assert torch.get_num_threads() == 2
    machine.is_busy = True
    machine.used.clear()
    machine.run(2000)
    assert 10.0 * machine.used.count(2) <= 2 * TRIAL_SHARE * 2000 + 200  # the steps before the first trial, too


def test_all_threads_are_taken_again_where_they_pay():
    machine = Machine(most=4)
    torch.set_num_threads(1)
    machine.threads.recent.extend([4.0] * 5)  # on a quiet machine, one thread of four
    machine.time = TRIAL_SECONDS
    machine.run(4)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("most", [0, 1])
def test_a_fixed_number_of_threads_stays(most: int):
    torch.set_num_threads(2)
    machine = Machine(2)
    machine.threads = AdaptiveThreads(most, lambda: machine.time)
    machine.is_busy = True
    machine.run(500)
    assert set(machine.used) == {2}


def test_short_runs_try_nothing():
    machine = Machine()
    machine.is_busy = True
    machine.run(TRIAL_SECONDS)
    assert set(machine.used) == {2}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
        ({"cpu.max": "?\n"}, float("inf")),
    ],
)
def test_the_quota_of_a_container_is_read(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.cpu_quota(tmp_path) == cores


def test_no_more_threads_than_cores_unless_said(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("unveil.runs.threads.num_cores", lambda: 1)
    torch.set_num_threads(2)
    with use_threads(3):
        assert torch.get_num_threads() == 3
    with use_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with use_threads():
        assert torch.get_num_threads() == 2


def test_a_run_takes_its_threads_and_gives_them_back(tmp_path):
    torch.set_num_threads(2)
    options = {"data": "scenes:count=40,size=32", "epochs": 1.0, "size": "nano", "batch_size": 16, "patch": 8}
    run = unveil.pretrain("mae", out=tmp_path / "run", threads=1, **options)
    assert torch.get_num_threads() == 2
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["threads"], settings["adaptive_threads"]) == (1, 0)
    with pytest.raises(ValueError, match="--threads 0: 1 thread or more is needed"):
        unveil.pretrain("mae", out=tmp_path / "other", threads=0, **options)


class Costs:
    """Stands in for timing a step: seconds of 16 images by threads, precision and compilation, and what was tried.

    An image of a larger batch takes the time of one of 16 and the share `larger` of what is beyond 16.
    """

    def __init__(self, one: float = 9.0, float32: float = 9.0, compiled: float | Exception = 9.0, larger: float = 1.0):
        self.one, self.float32, self.compiled, self.larger = one, float32, compiled, larger
        self.tried, self.batches, self.others = [], [], 0.1

    def __call__(self, recipe, settings: Settings, batch: int, modalities) -> float:
        is_single = torch.get_num_threads() == 1
        self.tried.append((is_single, settings.precision, settings.compile))
        self.batches.append(batch)
        share = 1 + self.larger * (batch / 16 - 1)
        if settings.compile:
            if isinstance(self.compiled, Exception):
                raise self.compiled
            return self.compiled * share
        return share * (self.one if is_single else self.float32 if settings.precision == "float32" else 1.0)


def chosen(monkeypatch, costs: Costs, planned: float = 100.0, largest: int = 0, **options) -> tuple[Settings, float]:
    torch.set_num_threads(2)
    monkeypatch.setattr("unveil.training.timing.measure_step", costs)
    monkeypatch.setattr("unveil.training.timing.processor_use", lambda: costs.others)
    config = PretrainConfig("mae", **options)
    most = adaptive_threads(config, torch.device("cpu"))
    settings = Settings("cpu", "bf16", 16, False, 10.0, 1.0, adaptive_threads=most)
    return choose_fastest(config, None, settings, (), planned, largest)


def test_the_fastest_of_what_is_open_is_taken(monkeypatch):
    settings, seconds = chosen(monkeypatch, Costs())
    assert (settings.precision, settings.compile, torch.get_num_threads(), seconds) == ("bf16", False, 2, 1.0)
    settings, seconds = chosen(monkeypatch, Costs(float32=0.5))
    assert (settings.precision, seconds) == ("float32", 0.5)
    assert chosen(monkeypatch, Costs(float32=0.95))[0].precision == "bf16"  # no more than timing may err
    chosen(monkeypatch, Costs(one=0.3))
    assert torch.get_num_threads() == 1
    settings, seconds = chosen(monkeypatch, Costs(compiled=0.5), planned=4000.0)
    assert (settings.compile, seconds) == (True, 0.5)


def test_what_is_given_or_does_not_pay_is_not_tried(monkeypatch):
    chosen(monkeypatch, costs := Costs(one=0.1, float32=0.1), precision="bf16", threads=2, compile="off", planned=4000)
    assert costs.tried == [(False, "bf16", False)]
    chosen(monkeypatch, costs := Costs(compiled=0.1), planned=100.0)
    assert not any(is_compiled for *_, is_compiled in costs.tried)
    costs = Costs(compiled=0.1)
    costs.others = 0.7  # of the processor is in use by other programs
    chosen(monkeypatch, costs, planned=4000.0)
    assert not any(is_compiled for *_, is_compiled in costs.tried)
    chosen(monkeypatch, costs := Costs(one=0.3, compiled=0.1), planned=4000.0)  # its threads would stay at one
    assert not any(is_compiled for *_, is_compiled in costs.tried)


def test_a_larger_batch_is_taken_while_it_is_much_faster(monkeypatch):
    settings, seconds = chosen(monkeypatch, costs := Costs(larger=0.5), largest=100)
    assert (settings.micro_batch, seconds) == (32, 1.5)  # 0.75 of the time of an image; 64 has 0.83 of that
    assert costs.batches[-2:] == [32, 64]
    assert chosen(monkeypatch, Costs(larger=0.1), largest=100)[0].micro_batch == 64  # 128 is beyond the largest
    assert chosen(monkeypatch, Costs(larger=0.7), largest=100)[0].micro_batch == 16
    assert chosen(monkeypatch, Costs(larger=0.1))[0].micro_batch == 16
    settings, _ = chosen(monkeypatch, Costs(larger=0.1, compiled=0.5), largest=32, planned=4000.0)
    assert (settings.micro_batch, settings.compile) == (32, True)


def test_a_compiler_that_fails_is_a_note(monkeypatch, capsys):
    settings, _ = chosen(monkeypatch, Costs(compiled=RuntimeError("no compiler")), planned=4000.0)
    assert not settings.compile
    assert "torch.compile does not work here (no compiler)" in "".join(capsys.readouterr())


def test_a_run_that_is_to_be_the_same_to_the_bit_keeps_its_threads():
    torch.set_num_threads(2)
    cpu = torch.device("cpu")
    assert adaptive_threads(PretrainConfig("mae"), cpu) == 2
    assert adaptive_threads(PretrainConfig("mae", precision="float32"), cpu) == 0
    assert adaptive_threads(PretrainConfig("mae", threads=2), cpu) == 0
    assert adaptive_threads(PretrainConfig("mae"), torch.device("meta")) == 0
