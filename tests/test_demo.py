"""The demo as a user gets it, small: scenes rendered, two runs trained, measured on held-out scenes, one report."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unveil.cli import main
from unveil.data.aligned_folders import open_samples
from unveil.data.modality_config import declare
from unveil.data.sources import open_source
from unveil.evaluation.outcomes import write_outcomes
from unveil.experiments.claims import Claim, conclusion, find, is_above
from unveil.experiments.demo import CLAIMS, PARTS, PROBE, SCENE_SIZE, begin, demo, ladder
from unveil.experiments.scenes import SceneSource, render, render_scenes
from unveil.runs.folder import read_metadata

SMALL = {"minutes": 0.1, "scenes": 40}
SETTINGS = {**SMALL, "seed": 0, "all": False, "check": False}
PLAN = {"scenes": 40, "rgb": 0.1, "senses": 0.02}  # minutes, as planned before: rgb is long enough to be stopped in
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass(frozen=True)
class StoppedDemo:
    """A small demo that Ctrl-C stopped in its training, and that the same command then finished; meanwhile its second
    run was begun and cut off."""

    folder: Path
    code: int  # the exit code after Ctrl-C
    stderr: str
    status: str  # of the first run then, with the names of its checkpoints
    checkpoints: list[str]
    again: subprocess.CompletedProcess[str]

    def log(self, recipe: str) -> str:
        return (self.folder / "logs" / f"{recipe}.log").read_text()


@pytest.fixture(scope="module")
def stopped_demo(tmp_path_factory: pytest.TempPathFactory) -> StoppedDemo:
    """The only demo that these tests run whole, by the command line; nobody writes to its folder."""
    folder = tmp_path_factory.mktemp("demos") / "demo"
    folder.mkdir()
    for name, content in (("demo", SETTINGS), ("plan", PLAN)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words = [sys.executable, "-m", "unveil", "demo", "--out", str(folder), *options]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    run, metrics = folder / "runs" / "rgb", folder / "runs" / "rgb" / "metrics.jsonl"
    assert process.stderr
    while not (metrics.exists() and '"kind": "step"' in metrics.read_text()):  # until training is on its way
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    status, checkpoints = read_metadata(run)["status"], [p.name for p in (run / "checkpoints").iterdir()]
    shutil.rmtree(folder / "runs" / "senses", ignore_errors=True)
    (folder / "runs" / "senses").mkdir()
    for left in (".lock", "metrics.jsonl"):
        (folder / "runs" / "senses" / left).touch()
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):  # in this process, which has all imported
        code = main(words[3:])
    again = subprocess.CompletedProcess(words, code, said.getvalue(), told.getvalue())
    return StoppedDemo(folder, process.returncode, stderr, status, checkpoints, again)


@pytest.fixture(scope="module")
def small_demo(stopped_demo: StoppedDemo) -> Path:
    """The folder of a small demo that ran to its end; nobody writes to it."""
    assert stopped_demo.again.returncode == 0, stopped_demo.again.stderr
    return stopped_demo.folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.slow
def test_it_leaves_finished_runs_measured_on_other_scenes_and_one_report_of_all(small_demo):
    page = (small_demo / "report.html").read_text()
    for name, claims in CLAIMS.items():
        run = small_demo / "runs" / name
        assert read_metadata(run)["status"] == "finished"
        findings = find(run, claims)
        assert [finding.claim for finding in findings] == [*claims], "every claim was measured"
        for finding in findings:
            assert set(finding.baselines) == set(finding.claim.baselines)
            assert finding.difference is not None, "in pairs"
        assert name in page
    result = json.loads((small_demo / "runs" / "rgb" / "eval" / "linear-lbfgs.json").read_text())
    places = tuple(str(small_demo / which / "rgb") for which in ("scenes", "held-out-scenes"))
    assert (result["data"], result["test_data"]) == places


@pytest.mark.slow
def test_the_scenes_are_aligned_folders_that_any_command_reads(small_demo):
    source, scenes = open_source(small_demo / "scenes" / "rgb"), SceneSource(40, SCENE_SIZE, 0)
    assert len(source) == 40
    assert source.classes == sorted(scenes.classes)
    at = int(source.name(7).removesuffix(".png").rsplit("/")[-1])
    assert source.classes[source.labels[7]] == scenes.classes[scenes.labels[at]]
    assert source.image(7).equal(scenes.image(at))
    maps = open_samples(small_demo / "scenes", declare(["rgb", "depth", "semseg"]))
    truth = render((0, at), SCENE_SIZE)
    sample = maps.sample(7)
    assert torch.allclose(sample.maps["depth"], torch.from_numpy(truth.depth), atol=6e-4)
    assert torch.equal(sample.maps["semseg"][0], torch.from_numpy(truth.semseg).long())
    held_out = open_source(small_demo / "held-out-scenes" / "rgb")
    assert not any(held_out.image(i).equal(source.image(7)) for i in range(len(held_out)))
    assert not list(small_demo.glob("*.part"))


@pytest.mark.slow
def test_the_same_again_keeps_the_scenes_and_begins_the_rest_anew(small_demo, tmp_path):
    folder = Path(shutil.copytree(small_demo, tmp_path / "demo"))
    times = {path: path.stat().st_mtime_ns for path in (folder / "scenes").rglob("*.png")}
    begin(folder, SETTINGS)
    assert {p.name for p in folder.iterdir()} == {"demo.json", "plan.json", "scenes", "held-out-scenes"}
    assert set(json.loads((folder / "plan.json").read_text())) == {"scenes"}
    render_scenes(SceneSource(40, SCENE_SIZE, 0), folder / "scenes")
    assert {path: path.stat().st_mtime_ns for path in (folder / "scenes").rglob("*.png")} == times


def test_other_settings_begin_all_anew_and_other_folders_are_left_alone(tmp_path):
    begin(tmp_path / "a", {"scenes": 20})
    for name in ("scenes/rgb/a.png", "runs/mae/run.json", "notes.txt"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    begin(tmp_path / "a", {"scenes": 20})
    assert (tmp_path / "a" / "runs" / "mae" / "run.json").exists()
    begin(tmp_path / "a", {"scenes": 20, "all": True})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["demo.json", "notes.txt", "scenes"]
    begin(tmp_path / "a", {"scenes": 30})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["demo.json", "notes.txt"]

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no demo"):
        demo(str(tmp_path / "b"))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_stopped_by_ctrl_c_it_goes_on_where_it_was_and_begins_a_run_that_was_cut_off_again(stopped_demo):
    assert stopped_demo.code == 130, stopped_demo.stderr
    assert "the same command continues the demo" in stopped_demo.stderr.splitlines()
    assert "Traceback" not in stopped_demo.stderr + stopped_demo.log("rgb")
    assert stopped_demo.status == "stopped"
    (saved,) = stopped_demo.checkpoints
    step = int(saved.removeprefix("step-"))
    assert step > 0

    again, folder = stopped_demo.again, stopped_demo.folder
    assert again.returncode == 0, again.stderr
    assert f"continuing {folder / 'runs' / 'rgb'} at step {step}" in stopped_demo.log("rgb")
    assert re.search(r"rgb: hidden patches filled in \d+\.\d\d dB; linear probe of the class \d+\.\d%", again.stderr)
    assert re.search(r"senses: classes of pixels from colour \d+\.\d%", again.stderr)
    for claim in (*CLAIMS["rgb"], *CLAIMS["senses"]):
        assert any(line.startswith(claim.words) for line in again.stdout.splitlines())
    assert again.stdout.splitlines()[-2] == f"report: {folder / 'report.html'}"
    assert again.stdout.splitlines()[-1].startswith("next: ")


def test_rendering_leaves_nothing_when_it_is_stopped(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(SceneSource(4, 32, 0), tmp_path / "scenes")
    assert list(tmp_path.iterdir()) == []


def measured(run: Path, value: list[float], **baselines: list[float]) -> Path:
    """A run with a linear probe whose hits, and those of its baselines, are these."""
    outcomes = {"this run": value, **baselines}
    accuracies = {name: {"accuracy": float(np.mean(hits))} for name, hits in outcomes.items()}
    (run / "eval").mkdir(parents=True)
    content = {"metrics": accuracies.pop("this run"), "baselines": accuracies}
    (run / "eval" / "linear-lbfgs.json").write_text(json.dumps(content))
    write_outcomes(run, "linear-lbfgs", {name: {"accuracy": hits} for name, hits in outcomes.items()})
    return run


def test_a_claim_holds_above_its_best_baseline_by_three_standard_errors_of_the_pairs(tmp_path):
    low, high = [1.0] * 20 + [0.0] * 80, [1.0] * 34 + [0.0] * 66
    (sure,) = find(measured(tmp_path / "a", high, pixels=[0.0] * 100, untrained=low), [PROBE])
    # 14 of 100 are gained and none is lost: the deviation of the pairs is sqrt(0.14 x 0.86 x 100 / 99) = 0.349
    assert sure.best == "untrained"
    assert sure.row[3] == "+14.00 ± 10.46 points"
    assert sure.holds
    # the same gain, but 20 are lost too: sqrt((0.54 - 0.14 ** 2) x 100 / 99) = 0.725, so 14.0 < 3 x 7.25
    (unsure,) = find(measured(tmp_path / "b", [0.0] * 20 + [1.0] * 34 + [0.0] * 46, untrained=low), [PROBE])
    assert (unsure.holds, unsure.row[4], is_above(unsure)) == (False, "not enough time", True)
    (worse,) = find(measured(tmp_path / "c", low, pixels=high), [PROBE])
    assert not worse.holds
    assert not is_above(worse)
    assert find(tmp_path / "a", [Claim("", "other", "knn", "accuracy", ("pixels",))]) == []

    assert conclusion([sure]).endswith("more than three standard errors of the held-out scenes.")
    assert "Not enough time for linear probe of the class:" in conclusion([sure, unsure])


def test_the_check_fails_where_the_probe_is_not_above_its_baselines(tmp_path, monkeypatch):
    from unveil.experiments import demo as module

    def run(accuracy: float) -> Path:
        shutil.rmtree(tmp_path / "demo", ignore_errors=True)
        hits = [float(number < 100 * accuracy) for number in range(100)]
        finding = find(measured(tmp_path / f"run-{accuracy}", hits, pixels=[1.0] * 20 + [0.0] * 80), [PROBE])
        monkeypatch.setattr(module, "_demo", lambda *_: (tmp_path / "report.html", finding))
        return demo(str(tmp_path / "demo"), check=True)

    assert run(0.3) == tmp_path / "report.html"
    with pytest.raises(ValueError, match="nothing was learned"):
        run(0.1)


def test_the_ladder_trains_cmtmae_after_its_teacher(tmp_path, monkeypatch):
    from unveil.experiments import demo as module

    jobs: list[Any] = []
    monkeypatch.setattr(module, "_run", lambda folder, chosen, slots, describe: jobs.extend(chosen))
    monkeypatch.setattr(module, "render_scenes", lambda source, folder: None)
    monkeypatch.setattr(module, "write_report", lambda runs, out: out)
    demo(str(tmp_path / "demo"), all=True, minutes=0.5, scenes=80)
    assert [job.recipe for job in jobs] == [*ladder(tmp_path / "demo")]
    assert {job.name: job.needs for job in jobs if job.needs} == {"cmtmae": ["crossmae"]}
    teachers = {job.name: job.pretrain["teacher"] for job in jobs if "teacher" in job.pretrain}
    assert teachers == {"cmtmae": str(tmp_path / "demo" / "runs" / "crossmae")}
    assert all(job.pretrain["minutes"] == 0.5 and job.evaluate[0]["protocol"][0] == "linear-lbfgs" for job in jobs)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"scenes": 39}, "too few"), ({"minutes": 0}, "no time"), ({"all": True, "check": True}, "give one of the two")],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        demo(str(tmp_path / "demo"), **given)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_its_report_is_whole_in_a_browser(browser, small_demo, width):
    names = list(CLAIMS)
    page = browser.new_page(viewport={"width": width, "height": 844}, offline=True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((small_demo / "report.html").as_uri())
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator(".gone").count() == 0, "a picture is missing"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"

    first, *verdicts = page.locator(".verdict .headline").all_inner_texts()
    assert "three standard errors" in first or first.startswith("Not enough time for")
    assert len(verdicts) == len(names)
    assert page.locator(".overview .group h2").all_inner_texts() == [*PARTS]
    assert page.locator(".overview .bars .metric").all_inner_texts() == [
        claim.words for part in PARTS for of_run in CLAIMS.values() for claim in of_run if claim.part == part
    ]
    assert page.locator(".overview .bars u").count() > 0, "whiskers"
    assert "sky" in page.locator(".looks .classes").last.inner_text(), "classes have names"
    captions = page.locator(".overview .triptych figcaption").all_inner_texts()
    assert len(captions) >= 5  # two held-out images of the one run, three looks of the other
    assert sum("from rgb alone" in caption for caption in captions) >= 2, "one sense tells another"
    head = page.locator("table.compare thead th").all_inner_texts()
    assert [name.strip() for name in head if name.strip()] == names
    rows = page.locator("table.compare tbody th").all_inner_texts()
    assert {"images/s", "held-out loss"} <= set(rows)
    titles = set(page.locator("h2").all_inner_texts())
    assert {"Side by side", "Curves", "Reconstructions", "Evaluation"} <= titles
    assert "untrained" in page.inner_text("section:has(h2:text-is('Evaluation'))")
    assert said == []
    page.close()
