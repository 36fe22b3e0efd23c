"""Studies run: killed and taken up, skipped where they are done, held by one process at a time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_runs import write_images, write_recipe
from unveil.experiments.study import Arm, Study
from unveil.experiments.study.aggregate import read_outcome
from unveil.experiments.study.command import study
from unveil.experiments.study.jobs import Job, expand
from unveil.experiments.study.registry import check, load_study
from unveil.experiments.study.schedule import Schedule, _Running
from unveil.experiments.study.worker import perform
from unveil.runs.lock import holder

FILE = '''
"""Two rates."""
from unveil.study import Arm, Scale, Setting, Study

study = Study(
    question="Which rate?",
    arms=(Arm("slow", "tiny.py", {"lr": 0.01}), Arm("fast", "tiny.py", {"lr": 0.05})),
    baseline="slow",
    scales={"smoke": Scale((Setting("colours", "images"),), (0,), {"knn": {}},
                           {"epochs": 15, "batch_size": 10, "image_size": (16,), "save_minutes": 0, "save_every": 5,
                            "precision": "float32"},
                           along={"knn": {}})},
)
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, a recipe and a study, where the commands run."""
    write_images(tmp_path / "images")
    write_recipe(tmp_path)
    (tmp_path / "rates.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for(what: str, is_there, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if is_there():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come")


def journal(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("runs/*/metrics.jsonl"))


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "unveil", "study", "rates.py", "--out", "s"]
    alike = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # with the study in this process, to the bit
    return subprocess.Popen(
        words, cwd=folder, env=alike, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_a_stopped_study_says_how_to_go_on(place: Path):
    process = start(place)
    wait_for("training", lambda: '"step": 3,' in journal(place / "s"), process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "unveil study rates.py --scale smoke --out s" in stderr


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_training")  # this process evaluates in the precision of the study's processes
def test_a_study_that_was_killed_gives_the_same_table(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    process = start(place)
    wait_for("training", lambda: '"step": 8,' in journal(place / "s"), process)
    for lock in (place / "s" / "locks").glob("colours-*[0-9]"):
        if owner := holder(lock):
            os.kill(int(owner.split()[1]), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert '"step": 45,' not in journal(place / "s")

    capsys.readouterr()
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    study("rates.py", out="s")  # here, which is quicker than one more process
    out = capsys.readouterr().out
    assert "one seed: no interval, no claim" in out

    job = expand(load_study("rates.py"), "smoke", Path("s"))[0]
    perform(place / "whole/runs" / job.name, {**job.to_dict(), "device": "cpu"})  # by itself and never disturbed
    result, undisturbed = (read_outcome(job, place / folder) for folder in ("s", "whole"))
    for key in ("metrics", "curves", "references"):
        assert result[key] == undisturbed[key]
    results = json.loads((place / "s/results.json").read_text())
    assert {row["metric"] for row in results["rows"]} > {"knn accuracy"}
    assert {row["epoch"] for row in results["along"] if row["metric"] == "knn accuracy"} >= {5.0, 10.0}
    assert "learning curves" in out
    assert (place / "s/report.html").exists()
    study("rates.py", out="s")
    assert "2 of 2 runs are there already" in capsys.readouterr().err


def done(place: Path, planned: Study) -> set[str]:
    check(planned, "smoke")
    return Schedule(place / "s", expand(planned, "smoke", Path("s"))).done


def test_what_is_done_is_skipped_and_what_changed_is_not(place: Path):
    planned = load_study("rates.py")
    at = replace(planned.scales["smoke"], options={"epochs": 1, "batch_size": 10, "image_size": (16,)}, protocols={})
    planned = replace(planned, scales={"smoke": at})
    for job in expand(planned, "smoke", Path("s")):
        perform(place / "s/runs" / job.name, {**job.to_dict(), "device": "cpu"})
    names = {job.name for job in expand(planned, "smoke", Path("s"))}
    assert done(place, planned) == names

    on_another_machine = replace(at, options={**at.options, "device": "cuda", "workers": 3})
    assert done(place, replace(planned, scales={"smoke": on_another_machine})) == names
    other_rate = replace(planned, arms=(planned.arms[0], Arm("fast", "tiny.py", {"lr": 0.06})))
    assert len(done(place, other_rate)) == 1
    assert not done(place, replace(planned, scales={"smoke": replace(at, seeds=(1,))}))
    more = replace(planned, scales={"smoke": replace(at, protocols={"knn": {}})})
    assert not done(place, more)
    assert {job.name for job in expand(more, "smoke", Path("s"))} == names  # measured anew, not trained anew
    Path("tiny.py").write_text(Path("tiny.py").read_text() + "\n# another recipe\n")
    assert not done(place, planned)


def test_a_run_that_fails_is_told_and_stops_nobody_else(place: Path, capsys: pytest.CaptureFixture[str]):
    Path("rates.py").write_text(FILE.replace('"lr": 0.01', '"lr": 0.01, "init_from": "nowhere"').replace("15", "1"))
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        study("rates.py", out="s", jobs=2, device="cpu")
    printed = capsys.readouterr()
    assert "nowhere" in printed.out
    assert "fast" in printed.out
    assert "[1/2]" in printed.err


def test_a_built_in_study_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In this process, one run after another: what real processes do to a study is proven above."""

    def here(schedule: Schedule, tell) -> None:
        for job in schedule.jobs:
            perform(
                schedule.folder / "runs" / job.name, json.loads((schedule.folder / f"jobs/{job.name}.json").read_text())
            )
            assert "knn accuracy" in tell(job)

    monkeypatch.setattr(Schedule, "run", here)
    folder = study("crossmae-mask-ratio", scale="smoke", out=str(tmp_path / "s"), seeds=1, device="cpu")
    assert folder
    table = (folder / "table.txt").read_text()
    for arm in ("hides 65 %", "hides 75 %", "hides 85 %", "(untrained)", "(pixels)"):
        assert arm in table
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 3


def test_a_dry_run_tells_the_cost_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(place.rglob("*"))
    assert study("rates.py", out="s", device="cpu", dry_run=True) is None
    stdout = capsys.readouterr().out
    assert "2 runs, seeds 0, measured by knn" in stdout
    assert "FLOPs" in stdout
    assert re.search(r"on one A100 or .* on one H100", stdout)
    assert sorted(p for p in place.rglob("*") if "__pycache__" not in str(p)) == before


def mistakes() -> Iterator[tuple[str, str]]:
    yield "study = 3", "no study"
    yield "import nothing_like_this", "line 1: ModuleNotFoundError"
    yield FILE.replace('"lr": 0.01', '"clipp": 0.01'), "arm slow: there is no option 'clipp'; did you mean clip"
    yield FILE.replace('baseline="slow"', 'baseline="slw"'), "no baseline 'slw'; did you mean slow"
    yield FILE.replace('{"knn": {}}', '{"knnn": {}}'), "no protocol 'knnn'; did you mean knn"
    yield FILE.replace('{"knn": {}}', '{"knn": {"epochs": 3}}'), "protocol knn: there is no option 'epochs'"
    yield FILE.replace('"epochs": 15, ', ""), "has no epochs"
    yield FILE.replace('"batch_size"', '"batch_sise"'), "there is no option 'batch_sise'; did you mean batch_size"
    yield FILE.replace('"fast", "tiny.py"', '"slow", "tiny.py"'), "each once"
    yield FILE.replace('"fast", "tiny.py"', '"fast", "tinny.py"'), "no recipe file tinny.py"


@pytest.mark.parametrize(("text", "message"), list(mistakes()))
def test_a_mistake_in_a_file_is_one_clear_error(place: Path, text: str, message: str):
    Path("rates.py").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        study("rates.py", out="s", device="cpu", dry_run=True)
    assert message in str(error.value)
    assert not Path("s").exists()


def test_options_may_still_be_called_dials(place: Path, capsys: pytest.CaptureFixture[str]):
    old = FILE.replace('"tiny.py", {"lr": 0.01}', '"tiny.py", dials={"lr": 0.01}').replace(
        "(0,), {", '(0,), dials={"epochs": 15, "batch_size": 10, "image_size": (16,)}, protocols={'
    )
    start = old.index('                           {"epochs": 15, "batch')
    old = old[:start] + old[old.index("                           along") :]
    Path("rates.py").write_text(old + "rates = study.arms[0].dials\n")
    planned = load_study("rates.py")
    assert "note: dials is now options; rates.py has the old name" in capsys.readouterr().err
    assert planned.arms[0].options == {"lr": 0.01}
    assert planned.scales["smoke"].options["epochs"] == 15
    assert replace(planned.arms[0], dials={"lr": 0.02}).options == {"lr": 0.02}  # type: ignore[call-arg]


def test_a_folder_of_something_else_is_left_alone(place: Path):
    with pytest.raises(ValueError, match="holds files that are no study"):
        study("rates.py", out="images", device="cpu")


def test_what_running_jobs_last_said_is_told_once(tmp_path, capsys):
    job = Job("a", "a", "", 0, "mae", {}, [], [], [])
    schedule = Schedule(tmp_path, [job], log_seconds=0.0)
    schedule.running.append(_Running(job, subprocess.Popen([sys.executable, "-c", ""]), 0, 0.0))
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    for words in ("", "x" * 9000 + "\nstep 1/9  3 s left\n", "step 1/9  3 s left\n\n", "step 5/9  1 s left\n"):
        log.write_text(words)
        schedule._log_progress()
    assert capsys.readouterr().err.splitlines() == ["a: step 1/9  3 s left", "a: step 5/9  1 s left"]
    schedule.shows_time = True
    schedule.running[0].began = time.monotonic() - 30
    schedule._log_progress()
    assert capsys.readouterr().err.splitlines() == ["a: at it for 30 s"]
    schedule.running[0].process.wait()
