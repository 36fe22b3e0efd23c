"""Studies: killed and taken up, skipped where they are done, tested against scipy, refused where they are wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_runs import write_images, write_recipe
from unveil.reporting.study import study_page
from unveil.study import Arm, RunOf, Scale, Setting, Share, Study
from unveil.study.command import study
from unveil.study.costs import build, counted
from unveil.study.finding import load_study, studies, summary
from unveil.study.jobs import check, expand, settled, with_data
from unveil.study.locks import DEAD, held, holder
from unveil.study.outcome import claim, gather, read_outcome, rows_of, times_to
from unveil.study.schedule import Schedule
from unveil.study.statistics import compare, estimate, holm, p_value, t_quantile
from unveil.study.tables import as_csv, as_text, remarks
from unveil.study.work import perform

FILE = '''
"""Two rates."""
from unveil.study import Arm, Scale, Setting, Study

study = Study(
    question="Which rate?",
    arms=(Arm("slow", "tiny.py", {"lr": 0.01}), Arm("fast", "tiny.py", {"lr": 0.05})),
    baseline="slow",
    scales={"smoke": Scale((Setting("colours", "images"),), (0,), {"knn": {}},
                           {"epochs": 15, "batch_size": 10, "image_size": (16,), "save_minutes": 0})},
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


def wait_for(what: str, found, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if found():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come")


def journal(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("runs/*/metrics.jsonl"))


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "unveil", "study", "rates.py", "--out", "s"]
    return subprocess.Popen(
        words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_a_study_that_was_killed_and_stopped_gives_the_same_table(place: Path):
    process = start(place)
    wait_for("training", lambda: '"step": 8,' in journal(place / "s"), process)
    locks = [json.loads(p.read_text()) for p in (place / "s" / "locks").glob("colours-*")]
    for number in [lock["process"] for lock in locks if lock != "free"]:
        os.kill(number, signal.SIGKILL)
    process.kill()
    process.communicate()
    assert '"step": 45,' not in journal(place / "s")

    process = start(place)
    wait_for("the second run", lambda: journal(place / "s").count('"step": 3,') >= 2, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert "unveil study rates.py --scale smoke --out s" in told

    process = start(place)
    out, told = process.communicate()
    assert process.returncode == 0, told
    assert "1 of 2 runs are there already" in told
    assert "one seed: no interval, no claim" in out

    asked = load_study("rates.py")
    jobs = expand(asked, "smoke", Path("s"))
    for job in jobs:  # each by itself and never disturbed
        perform(place / "whole" / "runs" / job.name, {**job.to_dict(), "device": "cpu"})
    found, undisturbed = ([read_outcome(job, f) for job in jobs] for f in (place / "s", place / "whole"))
    for key in ("metrics", "curves", "references"):
        assert [run[key] for run in found] == [run[key] for run in undisturbed]
    assert {row["metric"] for row in json.loads((place / "s/results.json").read_text())["rows"]} > {"knn accuracy"}
    assert (place / "s/report.html").exists()


def done(place: Path, asked: Study) -> set[str]:
    check(asked, "smoke")
    return Schedule(place / "s", expand(asked, "smoke", Path("s"))).done


def test_what_is_done_is_skipped_and_what_changed_is_not(place: Path):
    asked = load_study("rates.py")
    at = replace(asked.scales["smoke"], dials={"epochs": 1, "batch_size": 10, "image_size": (16,)}, protocols={})
    asked = replace(asked, scales={"smoke": at})
    for job in expand(asked, "smoke", Path("s")):
        perform(place / "s/runs" / job.name, {**job.to_dict(), "device": "cpu"})
    names = {job.name for job in expand(asked, "smoke", Path("s"))}
    assert done(place, asked) == names

    on_another_machine = replace(at, dials={**at.dials, "device": "cuda", "workers": 3})
    assert done(place, replace(asked, scales={"smoke": on_another_machine})) == names
    other_rate = replace(asked, arms=(asked.arms[0], Arm("fast", "tiny.py", {"lr": 0.06})))
    assert len(done(place, other_rate)) == 1
    assert not done(place, replace(asked, scales={"smoke": replace(at, seeds=(1,))}))
    more = replace(asked, scales={"smoke": replace(at, protocols={"knn": {}})})
    assert not done(place, more)
    assert {job.name for job in expand(more, "smoke", Path("s"))} == names  # measured anew, not trained anew
    Path("tiny.py").write_text(Path("tiny.py").read_text() + "\n# another recipe\n")
    assert not done(place, asked)


def test_a_run_that_fails_is_told_and_stops_nobody_else(place: Path, capsys: pytest.CaptureFixture[str]):
    Path("rates.py").write_text(FILE.replace('"lr": 0.01', '"lr": 0.01, "init_from": "nowhere"').replace("15", "1"))
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        study("rates.py", out="s", jobs=2, device="cpu")
    told = capsys.readouterr()
    assert "nowhere" in told.out
    assert "fast" in told.out
    assert "[1/2]" in told.err


# ---- locks


def test_a_lock_is_held_once(tmp_path: Path):
    with held(tmp_path, "a") as first, held(tmp_path, "a") as second, held(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
        assert f"process {os.getpid()}" in str(holder(tmp_path, "a"))
    assert holder(tmp_path, "a") is None
    with held(tmp_path, "a") as again:
        assert again


def test_many_at_once_and_one_has_it(tmp_path: Path):
    began, got = threading.Barrier(16), []

    def take() -> None:
        began.wait()
        with held(tmp_path, "a") as is_mine:
            got.append(is_mine)
            time.sleep(0.3)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 15 + [True]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"host": socket.gethostname(), "process": ended.pid, "started": time.time()}
    (tmp_path / "a.0").write_text(json.dumps(owner))
    with held(tmp_path, "a") as is_mine:
        assert is_mine
    recycled = {**owner, "process": os.getpid(), "started": 1.0}  # the number of a process that began at another time
    (tmp_path / "b.0").write_text(json.dumps(recycled))
    assert holder(tmp_path, "b") is None


def test_another_machine_is_alive_as_long_as_it_gives_signs(tmp_path: Path):
    file = tmp_path / "a.3"
    file.write_text(json.dumps({"host": "elsewhere", "process": 1, "started": 0.0}))
    with held(tmp_path, "a") as is_mine:
        assert not is_mine
    silent = time.time() - DEAD - 1
    os.utime(file, (silent, silent))
    with held(tmp_path, "a") as is_mine:
        assert is_mine


# ---- what a few seeds carry


def test_intervals_and_tests_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    chance = torch.Generator().manual_seed(0)
    for count in (2, 3, 5, 9, 40):
        a, b = (torch.randn(count, generator=chance, dtype=torch.float64).tolist() for _ in range(2))
        found = compare(dict(enumerate(a)), dict(enumerate(b)))
        assert found is not None
        assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
        low, high = stats.t.interval(0.95, count - 1, loc=sum(a) / count, scale=stats.sem(a))
        assert estimate(a).half == pytest.approx((high - low) / 2, rel=1e-9)
    for freedom in (1, 2, 7, 100):
        for t in (0.0, 0.3, 2.0, 15.0):
            assert p_value(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)


def test_statistics_by_hand():
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-4)
    assert t_quantile(4) == pytest.approx(2.7764, abs=1e-4)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert estimate([3.0]).half is None
    # t = 2 / (1 / sqrt(3)) = 3.4641 at two degrees of freedom
    found = compare({0: 1.0, 1: 2.0, 2: 3.0, 9: 0.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found is not None
    assert (found.difference.mean, found.difference.count) == (2.0, 3)
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_no_claim_is_made_that_does_not_hold():
    alike = compare({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5})
    assert alike is not None
    assert alike.p is None
    assert "no claim" in claim(alike, None)
    assert "one seed" in claim(compare({0: 1.0}, {0: 0.0}), None)
    assert "no claim" in claim(compare({0: 1.0}, {1: 0.0}), None)
    clear = compare({0: 0.50, 1: 0.51, 2: 0.52}, {0: 0.400, 1: 0.411, 2: 0.419})
    assert clear is not None
    assert claim(clear, clear.p) == "higher"
    assert claim(clear, 0.2) == "no difference shown"


def run(arm: str, seed: int, accuracy: float, setting: str = "scenes", seconds: float = 10.0) -> dict:
    return {
        **{"name": f"{arm}{seed}", "arm": arm, "setting": setting, "seed": seed, "status": "finished", "error": None},
        **{"metrics": {"knn accuracy": accuracy}, "references": {}, "seconds": seconds, "epochs": seconds / 10},
        **{"images_per_second": 100.0, "memory_mb": 512.0, "curves": {"rankme": [[0, 3.0], [1, 4.0]]}},
    }


def test_tables_and_the_page_say_what_the_runs_carry():
    runs = [run(arm, s, base + 0.01 * s + 0.001 * (s == 1) * (arm == "b")) for arm, base in (("<a>", 0.3), ("b", 0.4))
            for s in range(3)]  # fmt: skip
    rows = rows_of(runs, "scenes", "<a>")
    assert [(r["arm"], r["says"]) for r in rows] == [("<a>", "the baseline"), ("b", "higher")]
    outcome = {
        **{"study": "s", "question": "q?", "note": "", "scale": "cpu", "baseline": "<a>", "seeds": [0, 1, 2]},
        **{"settings": [{"name": "scenes"}], "arms": [{"name": "b", "recipe": "mae", "dials": {}}], "runs": runs},
        **{"rows": rows, "references": [], "times": []},
    }
    outcome["remarks"] = remarks(outcome)
    outcome["headlines"] = ["knn accuracy"]
    assert "41.0 ± " in as_text(outcome)
    assert "higher" in as_text(outcome)
    assert as_csv(outcome).count("\n") == 7
    page = study_page(outcome)
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert "src=" not in page.replace('src="data:', "")


def test_how_soon_an_arm_gets_there():
    runs = [
        run("a", 0, 0.2, "short", 10), run("a", 0, 0.4, "long", 30),
        run("b", 0, 0.3, "short", 12), run("b", 0, 0.5, "long", 32),
        run("c", 0, 0.45, "short", 9), run("c", 0, 0.6, "long", 40),
    ]  # fmt: skip
    found = {t["arm"]: t for t in times_to(runs, ["short", "long"], "knn accuracy")}
    assert found["a"]["seconds"] == 30  # 0.4 is what all of them reach
    assert found["b"]["seconds"] == pytest.approx(22)
    assert found["c"]["at_most"]
    assert found["c"]["seconds"] == 9


# ---- what a study may be


def test_arms_build_on_runs_of_others_in_the_same_setting_and_seed(tmp_path: Path):
    asked = Study(
        "?",
        (
            Arm("second", "cmtmae", {"teacher": RunOf("first"), "stage1_epochs": Share(0.25)}),
            Arm("first", "mae"),
        ),
        "first",
        {"cpu": Scale((Setting("x", "scenes"), Setting("y", "scenes")), (0, 1), {}, {"epochs": 8, "draw": "hard"})},
    )  # fmt: skip
    check(asked, "cpu")
    jobs = {(job.arm, job.setting, job.seed): job for job in expand(asked, "cpu", tmp_path)}
    assert len({job.name for job in jobs.values()}) == 8
    for (arm, setting, seed), job in jobs.items():
        if arm == "second":
            assert job.needs == [jobs["first", setting, seed].name]
            assert job.pretrain["teacher"] == str(tmp_path / "runs" / job.needs[0])
            assert (job.pretrain["stage1_epochs"], job.pretrain["draw"]) == (2.0, "hard")
        else:
            assert "draw" not in job.pretrain  # mae has none


NAMES = sorted(studies())


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_study_is_possible_at_every_scale(name: str, tmp_path: Path):
    asked = load_study(name)
    assert summary(studies()[name])
    assert set(asked.scales) == {"smoke", "cpu", "gpu", "paper"}
    for scale, at in asked.scales.items():
        check(asked, scale)
        given = with_data(asked, scale, data=[f"{s.name}=scenes" for s in at.settings if s.data is None])
        jobs = expand(given, scale, tmp_path)
        assert len({job.name for job in jobs}) == len(jobs)
        assert scale != "cpu" or len(jobs) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_the_arms_of_a_built_in_study_are_legal(name: str):
    asked = load_study(name)
    at = asked.scales["smoke"]
    for arm in asked.arms_at("smoke"):
        with torch.device("meta"):  # the shapes alone
            assert all(stage.build() for stage in build(arm, at, at.settings[0]).stages), arm.name


def test_operations_are_counted_over_the_stages_as_they_are_long():
    asked = load_study("cmtmae-ladder")
    at = asked.scales["smoke"]
    flops = {arm.name: counted(arm, at, at.settings[0])[0] for arm in asked.arms[:2]}
    assert flops["MAE"] > 1e6
    assert flops["random masks, teacher targets"] > 1.3 * flops["MAE"]  # the teacher looks at the whole image


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
    told = (folder / "table.txt").read_text()
    for arm in ("hides 65 %", "hides 75 %", "hides 85 %", "(untrained)", "(pixels)"):
        assert arm in told
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 3


def test_a_dry_run_tells_the_cost_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(place.rglob("*"))
    assert study("rates.py", out="s", device="cpu", dry_run=True) is None
    told = capsys.readouterr().out
    assert "2 runs, seeds 0, measured by knn" in told
    assert "FLOPs" in told
    assert sorted(p for p in place.rglob("*") if "__pycache__" not in str(p)) == before


def mistakes() -> Iterator[tuple[str, str]]:
    yield "study = 3", "no study"
    yield "import nothing_like_this", "line 1: ModuleNotFoundError"
    yield FILE.replace('"lr": 0.01', '"clipp": 0.01'), "arm slow: there is no dial 'clipp'; did you mean clip"
    yield FILE.replace('baseline="slow"', 'baseline="slw"'), "no baseline 'slw'; did you mean slow"
    yield FILE.replace('{"knn": {}}', '{"knnn": {}}'), "no protocol 'knnn'; did you mean knn"
    yield FILE.replace('{"knn": {}}', '{"knn": {"epochs": 3}}'), "protocol knn: there is no dial 'epochs'"
    yield FILE.replace('"epochs": 15, ', ""), "has no epochs"
    yield FILE.replace('"batch_size"', '"batch_sise"'), "there is no dial 'batch_sise'; did you mean batch_size"
    yield FILE.replace('"fast", "tiny.py"', '"slow", "tiny.py"'), "each once"
    yield FILE.replace('"fast", "tiny.py"', '"fast", "tinny.py"'), "no recipe file tinny.py"


@pytest.mark.parametrize(("text", "message"), list(mistakes()))
def test_a_mistake_in_a_file_is_one_clear_error(place: Path, text: str, message: str):
    Path("rates.py").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        study("rates.py", out="s", device="cpu", dry_run=True)
    assert message in str(error.value)
    assert not Path("s").exists()


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(ValueError, match=r"did you mean .*crossmae-mask-ratio"):
        load_study("crossmae-mask-rate")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_study("nowhere.py")
    with pytest.raises(ValueError, match="ImageNet-1K has no images; give --data"):
        expand(load_study("crossmae-mask-ratio"), "paper", Path("x"))
    with pytest.raises(ValueError, match="no scale 'huge'"):
        check(load_study("crossmae-mask-ratio"), "huge")  # type: ignore[arg-type]
    circle = (Arm("a", "mae", {"init_from": RunOf("b")}), Arm("b", "mae", {"init_from": RunOf("a")}))
    with pytest.raises(ValueError, match="starts from its own"):
        check(Study("?", circle, "a", {"cpu": Scale((Setting("x", "scenes"),), dials={"epochs": 1})}), "cpu")


def test_a_folder_of_something_else_is_left_alone(place: Path):
    with pytest.raises(ValueError, match="holds files that are no study"):
        study("rates.py", out="images", device="cpu")


def test_data_of_ones_own_takes_the_place_of_a_setting():
    asked = load_study("cmtmae-student-weight")
    given = with_data(asked, "gpu", data=["photographs base=scenes:seed=3"])
    assert [s.data for s in given.scales["gpu"].settings if s.name.startswith("photographs")] == ["scenes:seed=3"]
    with pytest.raises(ValueError, match="no setting 'photos'"):
        with_data(asked, "gpu", data=["photos=x"])


def test_a_share_of_the_epochs_is_that_of_the_run():
    at = Scale((Setting("x", "scenes"),), dials={"epochs": 32})
    arm = Arm("a", "cmtmae", {"epochs": Share(0.5), "stage1_epochs": Share(0.25)})
    found = settled(arm, at, at.settings[0])
    assert (found["epochs"], found["stage1_epochs"]) == (16, 4)


def test_gathering_reads_what_is_there(tmp_path: Path):
    asked = load_study("crossmae-mask-ratio")
    jobs = expand(asked, "smoke", tmp_path)
    found = gather(asked, "smoke", jobs, tmp_path, {jobs[0].name: "no luck"})
    assert found["runs"][0]["error"] == "no luck"
    assert {r["status"] for r in found["runs"]} == {"not begun"}
    assert found["rows"] == []
