"""The demo as a user gets it, small: scenes rendered, two runs trained, measured on held-out scenes, one report."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.data.aligned_folders import open_samples
from unveil.data.modality_config import declare
from unveil.data.sources import open_source
from unveil.evaluation.results import Result
from unveil.experiments.demo import SCENE_SIZE, begin, conclusion, demo, recipes
from unveil.experiments.scenes import SceneSource, render, render_scenes
from unveil.runs.folder import read_metadata

SMALL = {"minutes": 0.04, "scenes": 20}
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass(frozen=True)
class StoppedDemo:
    """A small demo that Ctrl-C stopped in the training of `mae`, and that the same command then finished."""

    folder: Path
    code: int  # the exit code after Ctrl-C
    stderr: str
    status: str  # of the run of `mae` then, with the names of its checkpoints
    checkpoints: list[str]
    again: subprocess.CompletedProcess[str]

    def log(self, recipe: str) -> str:
        return (self.folder / "logs" / f"{recipe}.log").read_text()


@pytest.fixture(scope="module")
def stopped_demo(tmp_path_factory: pytest.TempPathFactory) -> StoppedDemo:
    """The only demo that these tests run whole, by the command line; nobody writes to its folder."""
    folder = tmp_path_factory.mktemp("demos") / "demo"
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words = [sys.executable, "-m", "unveil", "demo", "--out", str(folder), *options]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    run, metrics = folder / "runs" / "mae", folder / "runs" / "mae" / "metrics.jsonl"
    assert process.stderr
    while not (metrics.exists() and '"kind": "step"' in metrics.read_text()):  # until training is on its way
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    status, checkpoints = read_metadata(run)["status"], [p.name for p in (run / "checkpoints").iterdir()]
    again = subprocess.run(words, capture_output=True, text=True)
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


def scored(learned: float, untrained: float, images: int = 1000) -> Result:
    """A k-NN result with these accuracies."""
    baselines = {"pixels": {"accuracy": 0.25}, "untrained": {"accuracy": untrained}}
    settings = {"test_images": images}
    return Result("knn", "a", "b", "mean", {"accuracy": learned}, baselines, settings, "", 0.0, "")


def test_it_leaves_finished_runs_measured_on_other_scenes_and_one_report_of_all(small_demo):
    page = (small_demo / "report.html").read_text()
    for name in recipes(small_demo):
        run = small_demo / "runs" / name
        assert read_metadata(run)["status"] == "finished"
        result = json.loads((run / "eval" / "knn.json").read_text())
        assert (result["data"], result["test_data"]) == tuple(
            str(small_demo / which / "rgb") for which in ("scenes", "held-out-scenes")
        )
        assert name in page
    beside = json.loads((small_demo / "runs" / "mae" / "eval" / "knn.json").read_text())["baselines"]
    assert {"pixels", "untrained"} <= set(beside)


def test_the_scenes_are_aligned_folders_that_any_command_reads(small_demo):
    source, scenes = open_source(small_demo / "scenes" / "rgb"), SceneSource(20, SCENE_SIZE, 0)
    assert len(source) == 20
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


def test_the_same_again_keeps_the_scenes_and_begins_the_rest_anew(small_demo, tmp_path):
    folder = Path(shutil.copytree(small_demo, tmp_path / "demo"))
    times = {path: path.stat().st_mtime_ns for path in (folder / "scenes").rglob("*.png")}
    begin(folder, {**SMALL, "seed": 0})
    assert {p.name for p in folder.iterdir()} == {"demo.json", "scenes", "held-out-scenes"}
    render_scenes(SceneSource(20, SCENE_SIZE, 0), folder / "scenes")
    assert {path: path.stat().st_mtime_ns for path in (folder / "scenes").rglob("*.png")} == times


def test_other_settings_begin_all_anew_and_other_folders_are_left_alone(tmp_path):
    begin(tmp_path / "a", {"scenes": 20})
    for name in ("scenes/rgb/a.png", "runs/mae/run.json", "notes.txt"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    begin(tmp_path / "a", {"scenes": 20})
    assert (tmp_path / "a" / "runs" / "mae" / "run.json").exists()
    begin(tmp_path / "a", {"scenes": 30})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["demo.json", "notes.txt"]

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no demo"):
        demo(str(tmp_path / "b"))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.tex"]


def test_stopped_by_ctrl_c_it_goes_on_where_it_was(stopped_demo):
    assert stopped_demo.code == 130, stopped_demo.stderr
    assert "Traceback" not in stopped_demo.stderr + stopped_demo.log("mae")
    assert stopped_demo.status == "stopped"
    (saved,) = stopped_demo.checkpoints
    step = int(saved.removeprefix("step-"))
    assert step > 0

    again, folder = stopped_demo.again, stopped_demo.folder
    assert again.returncode == 0, again.stderr
    assert f"continuing {folder / 'runs' / 'mae'} at step {step}" in stopped_demo.log("mae")
    for name in recipes(folder):
        assert re.search(
            rf"^\[\d/4\] {name}: k-NN \d+\.\d %, whitened k-NN \d+\.\d %, linear \d+\.\d %", again.stderr, re.MULTILINE
        )
    assert again.stdout.splitlines()[-2] == f"report: {folder / 'report.html'}"
    assert again.stdout.splitlines()[-1].startswith("next: ")


def test_a_run_that_was_cut_off_before_it_began_is_begun_again(small_demo, tmp_path):
    folder = Path(shutil.copytree(small_demo, tmp_path / "demo"))
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "runs" / "crossmae")
    (folder / "runs" / "crossmae").mkdir()
    for left in (".lock", "metrics.jsonl"):
        (folder / "runs" / "crossmae" / left).touch()
    written = (folder / "runs" / "mae" / "run.json").stat().st_mtime_ns
    assert demo(str(folder), **SMALL).exists()
    assert read_metadata(folder / "runs" / "crossmae")["status"] == "finished"
    assert (folder / "runs" / "mae" / "run.json").stat().st_mtime_ns == written


def test_rendering_leaves_nothing_when_it_is_stopped(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(SceneSource(4, 32, 0), tmp_path / "scenes")
    assert list(tmp_path.iterdir()) == []


def test_the_conclusion_says_what_the_numbers_carry():
    def judged(**accuracies: float) -> str:
        plain = {name: scored(0.12, 0.11) for name in accuracies}
        return conclusion(plain, {name: scored(learned, 0.20) for name, learned in accuracies.items()})

    lines = judged(mae=0.30, crossmae=0.21).splitlines()
    assert lines[0].endswith("1,000 held-out scenes: mae 12.0 %, crossmae 12.0 %, untrained 11.0 %, raw pixels 25.0 %.")
    assert "mae 30.0 %, crossmae 21.0 %, untrained 20.0 %, raw pixels 25.0 %; chance 10.0 %." in lines[1]
    # the error of 0.30 - 0.20 is sqrt(0.3 x 0.7 / 1000 + 0.2 x 0.8 / 1000) = 0.0192
    assert lines[2] == "mae is above the untrained encoder (the difference is 5.2 standard errors)."
    assert lines[3].startswith("crossmae is above the untrained encoder, but no more than chance may explain (the")
    few = {"mae": scored(0.30, 0.20, images=50)}
    assert "chance may explain" in conclusion(few, few)
    for nothing in (0.1, 0.2):
        assert "mae is no better than the untrained encoder." in judged(mae=nothing)
    none = {"mae": scored(0.0, 0.0)}
    assert "mae is no better" in conclusion(none, none)


@pytest.mark.parametrize(("given", "message"), [({"scenes": 19}, "too few"), ({"minutes": 0}, "no time")])
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        demo(str(tmp_path / "demo"), **given)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("width", [390, 1280])
def test_its_report_is_whole_in_a_browser(browser, small_demo, width):
    names = list(recipes(small_demo))
    page = browser.new_page(viewport={"width": width, "height": 844}, offline=True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((small_demo / "report.html").as_uri())
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator(".gone").count() == 0, "a picture is missing"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"

    verdicts = page.locator(".verdict .headline").all_inner_texts()
    assert len(verdicts) == len(names)
    head = page.locator("table.compare thead th").all_inner_texts()
    assert [name.strip() for name in head if name.strip()] == names
    rows = page.locator("table.compare tbody th").all_inner_texts()
    assert {"k-NN accuracy", "linear accuracy", "images/s", "held-out loss"} <= set(rows)
    titles = set(page.locator("h2").all_inner_texts())
    assert {"Side by side", "Curves", "Reconstructions", "Attention", "Nearest neighbours", "Evaluation"} <= titles
    assert "untrained" in page.inner_text("section:has(h2:text-is('Evaluation'))")
    assert said == []
    page.close()
