"""The report as a user gets it: run folders in, one HTML file out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_fakes import fake_images, fake_run
from unveil.reporting.frames import epoch_name, evenly_spaced
from unveil.reporting.journal import read_metrics
from unveil.reporting.live import live_application
from unveil.reporting.markup import count, prose
from unveil.reporting.page import write_report
from unveil.reporting.run_record import ProbeEpoch, read_run
from unveil.reporting.server import Request
from unveil.runs.atomic import write_json

HOSTILE = "<script>alert('x')</script>\"&'"


@pytest.fixture(scope="module")
def run_a(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "a")


def small_run(folder: Path) -> Path:
    """A whole run that is quick to report on."""
    return fake_run(folder, epochs=2, steps_per_epoch=12, images=fake_images(1, (8, 8)), grid=(2, 2), picture_epochs=1)


def test_a_page_on_many_runs_stays_small(tmp_path, monkeypatch):
    runs = [small_run(tmp_path / name) for name in "abcde"]
    whole = write_report(runs, tmp_path / "whole.html").read_text()
    monkeypatch.setattr("unveil.reporting.page.MOST_BYTES", len(whole.encode()) // 2)
    page = write_report(runs, tmp_path / "small.html").read_text()
    assert len(page) < len(whole)
    assert re.findall(r"Below are pictures of the first (\d) runs", page) in (["2"], ["3"], ["4"])
    assert page.count('class="verdict') == whole.count('class="verdict') == 5
    assert "Below are pictures of" not in whole


class Reader(HTMLParser):
    """Collects tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data + " "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(*runs: Path, out: Path | None = None) -> Reader:
    reader = Reader(write_report(runs, out).read_text())
    assert reader.open == []
    return reader


def test_everything_that_was_asked_for_is_on_the_page(run_a):
    page = report(run_a)
    for words in (
        "Optimisation healthy; features above raw pixels and the untrained encoder.", "What was run",
        "unveil pretrain crossmae --data ~/photos", "7 steps an epoch at 256",
        "Curves", "Images per second", "Signals that need no labels", "RankMe", "Held-out loss", "Reconstructions",
        "Norm-pix:", "epoch 30", "Attention", "Nearest neighbours", "Evaluation", "43.1 %", "untrained", "pixels",
        "Broken files", "IMG_0042.jpg", "Environment", "2.13.0", "7b115ff",
    ):  # fmt: skip
        assert words in page.text, words
    assert all(image["alt"] for image in page.named("img"))


def test_the_page_needs_nothing_but_itself(run_a):
    path = write_report([run_a])
    page = Reader(path.read_text())
    assert path == run_a / "report.html"
    assert path.stat().st_size < 3_000_000
    assert not re.findall(r"https?:|[\"'(]//|url\(|@import", path.read_text())
    for _, attributes in page.tags:
        assert (attributes.get("href") or "#").startswith("#"), "links stay on the page"
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    assert "default-src 'none'" in str(page.named("meta"))
    assert not [p for p in run_a.iterdir() if p.name.endswith(".part")]


def test_several_runs_are_laid_over_one_another_and_compared(run_a, tmp_path):
    b = fake_run(tmp_path / "b", seed=1, floor=0.5, accuracy=0.38, recipe="mae")
    path = write_report([run_a, b], tmp_path / "both.html")
    text = path.read_text()
    page = Reader(text)
    assert "Side by side" in page.text
    assert text.index("Side by side") < text.index("What was run")
    assert "<strong>43.1 ± 1.0 %</strong>" in text
    assert "<strong>38.0 ± 1.0 %</strong>" not in text
    assert "Loss over time" in page.text
    assert 'data-name="a"' in text
    assert 'data-name="b"' in text
    assert len(page.named("tr")) > 8


def test_losses_of_different_targets_are_not_ranked(run_a, tmp_path):
    b = fake_run(tmp_path / "b", floor=0.1, model={"norm_pix": False})
    text = write_report([run_a, b], tmp_path).read_text()
    row = text[text.index('<th scope="row">final loss</th>') :].split("</tr>")[0]
    assert "<strong>" not in row
    assert "their losses do not compare" in text


def test_dials_that_one_run_alone_has_are_no_comparison(run_a, tmp_path):
    b = fake_run(tmp_path / "b", recipe="cmtmae", options={"size": "tiny", "patch": 8, "draw": "gumbel"})
    text = write_report([run_a, b], tmp_path).read_text()
    compared = text[text.index("Side by side") :].split("</table>")[0]
    assert '<th scope="row">patch</th>' in compared
    assert '<th scope="row">draw</th>' not in compared
    assert "gumbel" in text, "the run's own section has it"


def test_the_same_folder_is_shown_once_and_equal_names_are_told_apart(run_a, tmp_path):
    assert "Side by side" not in report(run_a, run_a.parent / "." / "a", out=tmp_path).text
    twin = fake_run(tmp_path / "other" / "a", epochs=6)
    assert "other/a" in report(run_a, twin, out=tmp_path).text


def test_no_name_can_become_markup(tmp_path):
    run = fake_run(
        tmp_path / "<b>run",
        epochs=6,
        recipe=HOSTILE,
        command=HOSTILE,
        error=HOSTILE,
        status="failed",
        options={HOSTILE: HOSTILE, "epochs": HOSTILE},
        data={"address": HOSTILE},
        versions={HOSTILE: HOSTILE},
        changes=[{"option": HOSTILE, "paper": HOSTILE, "used": HOSTILE, "why": HOSTILE}],
    )
    (run / "broken.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    evaluation = {"protocol": HOSTILE, "data": HOSTILE, "metrics": {HOSTILE: 1}, "baselines": {HOSTILE: {HOSTILE: 1}}}
    (run / "eval" / "x.json").write_text(json.dumps(evaluation | {"card": HOSTILE}))
    index = json.loads((run / "pictures/index.json").read_text())
    index["probes"], index["note"] = [{"name": HOSTILE}] * 4, HOSTILE
    (run / "pictures/index.json").write_text(json.dumps(index))
    for runs in ([run], [run, fake_run(tmp_path / "c", epochs=6)]):
        page = report(*runs, out=tmp_path)
        assert len(page.named("script")) == 1
        assert not page.named("b")
        assert page.text.count(HOSTILE) > 10


def test_a_run_that_has_only_begun_still_has_a_page(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text('{"recipe": "mae", "status": "running"}')
    page = report(tmp_path / "new")
    assert "No training step was logged yet" in page.text
    assert "metrics.jsonl is missing" in page.text
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 1.0}\n')
    assert "run.json is missing" in report(tmp_path / "old").text
    assert "Side by side" in report(tmp_path / "new", tmp_path / "old").text


@pytest.mark.parametrize(
    "rubbish", ["", "{", "[]", "null", "3", '{"a": [1, {"b": null}]}', '[{"query": 5}, 7]', "\x00\xff"]
)
def test_rubbish_in_any_file_is_survived(tmp_path, rubbish):
    run = small_run(tmp_path / "a")
    for path in sorted(run.rglob("*.json*")):
        whole = path.read_bytes()
        path.write_text(rubbish)
        report(run)
        path.write_bytes(whole)


@pytest.mark.parametrize("wrong", [None, 5, "x", [None], {"x": None}])
def test_a_key_of_the_wrong_type_is_survived(tmp_path, wrong):
    run = small_run(tmp_path / "a")
    for path in sorted(run.rglob("*.json")):
        stored = json.loads(path.read_text())
        for key in stored if isinstance(stored, dict) else range(len(stored)):
            path.write_text(json.dumps(({**stored, key: wrong}) if isinstance(stored, dict) else [wrong]))
            report(run)
        path.write_text(json.dumps(stored))
    fields = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    (run / "metrics.jsonl").write_text("".join(json.dumps(fields | {f: wrong}) + "\n" for f in fields))
    report(run)


def test_a_picture_that_cannot_be_read_leaves_a_box(tmp_path):
    run = fake_run(tmp_path / "a", epochs=4, picture_epochs=2)
    before = len(report(run).named("img"))
    files = sorted((run / "pictures").glob("*reconstructed.png"))
    files[0].write_bytes(files[0].read_bytes()[:200])
    files[1].unlink()
    page = report(run)
    assert len(page.named("img")) == before - 2
    assert page.text.count("no picture") == 2


def test_a_picture_outside_the_run_folder_is_not_read(tmp_path):
    run = fake_run(tmp_path / "a", epochs=4, picture_epochs=1)
    (run / "pictures" / "query0.png").rename(tmp_path / "secret.png")
    rows = json.loads((run / "pictures/neighbours.json").read_text())
    rows[0]["query"] = "../../secret.png"
    (run / "pictures/neighbours.json").write_text(json.dumps(rows))
    assert read_run(run).neighbours[0].query.image is None


def test_a_cut_off_line_is_left_out_and_a_resumed_run_follows_its_last_course(tmp_path):
    steps = [(10, 0.9), (20, 0.8), (30, 0.7), (15, 0.6), (25, 0.5)]
    lines = [json.dumps({"kind": "step", "step": s, "epoch": s / 10, "loss": x}) for s, x in steps]
    lines.insert(3, json.dumps({"kind": "signals", "step": 30, "rankme": 5}))
    lines.insert(1, json.dumps({"kind": "signals", "step": 10, "rankme": 4}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "step", "step": 30, "lo')
    run = read_run(tmp_path)
    assert [(s.step, s.loss) for s in run.steps] == [(10, 0.9), (15, 0.6), (25, 0.5)]
    assert [s.step for s in run.signals] == [10]
    assert any("1 line could not be read" in remark for remark in run.remarks)


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report([tmp_path / "none"])
    with pytest.raises(ValueError, match="give the folder of a run"):
        write_report([tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        write_report([])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_runs_is_a_comparison_of_all_below_it(tmp_path):
    for i in range(9):
        small_run(tmp_path / "runs" / ("deep" if i % 2 else "flat") / f"r{i}")
    write_json(tmp_path / "runs" / "flat" / "r0" / "run.json", {"recipe": "mae", "status": "failed"})
    (tmp_path / "runs" / "flat" / "r2" / "checkpoints").mkdir()
    path = write_report([tmp_path / "runs"])
    assert path == tmp_path / "runs" / "report.html"
    page = Reader(path.read_text())
    assert "9 runs compared" in page.text
    assert "3 more runs" in page.text
    compared = path.read_text().partition('id="side-by-side"')[2].partition("</table>")[0]
    assert compared.count("<tr>") == 10, "a row for each run"
    assert [f"r{i}<" in compared for i in range(9)] == [True] * 9
    assert "failed" in compared


def test_runs_on_other_data_are_not_called_comparable(tmp_path):
    a, b = (small_run(tmp_path / name) for name in "ab")
    data = {"address": "~/other", "count": 2000, "held_out": 200, "image_size": [32, 32], "channels": 3}
    info = json.loads((b / "run.json").read_text())
    write_json(b / "run.json", {**info, "data": data})
    text = Reader(write_report([a, b], tmp_path / "r.html").read_text()).text
    assert "The runs differ in data and image size, so their losses do not compare" in text
    assert "share data, target and share hidden" not in text
    write_json(b / "run.json", info)
    evaluation = json.loads((b / "eval" / "knn.json").read_text())
    write_json(b / "eval" / "knn.json", {**evaluation, "settings": {"k": 20, "test_images": 500}})
    text = Reader(write_report([a, b], tmp_path / "r.html").read_text()).text
    assert "share data, target and share hidden" in text
    assert "k-NN (cifar10.parquet · 500 test images)" in text
    assert re.search(r"k-NN \(cifar10.parquet · 10000 test images\) +43.1 ± 1.0 % +–", text)


def test_a_served_page_follows_the_run_folder(tmp_path):
    run = small_run(tmp_path / "a")
    composed: list[int] = []

    def compose() -> str:
        composed.append(1)
        return f"<html>{len(composed)}</html>"

    ask = live_application(lambda: [run], compose)
    state = json.loads(ask(Request("GET", "/state")).body)["state"]
    page = f'<html data-state="{state}">1</html>'.encode()
    assert ask(Request("GET", "/")).body == ask(Request("GET", "/")).body == page
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "step", "step": 30, "loss": 0.5}\n')
    assert json.loads(ask(Request("GET", "/state")).body)["state"] != state
    assert b">2<" in ask(Request("GET", "/")).body
    (run / "eval" / "more.json").write_text('{"metrics": {"accuracy": 0.5}}')
    assert b">3<" in ask(Request("GET", "/")).body
    assert ask(Request("GET", "/run.json")).status == 404, "no file is served"


def test_watch_serves_until_it_is_stopped_and_then_writes_the_page(tmp_path, monkeypatch):
    run = small_run(tmp_path / "a")
    pages: list[str] = []

    def serve(application, port):
        pages.append(application(Request("GET", "/")).body.decode())
        (run / "run.json").write_text('{"recipe": "mae", "status": "finished", "command": "xyzzy"}')

    monkeypatch.setattr("unveil.reporting.page.serve", serve)
    written = write_report(run, watch=True).read_text()
    assert "connect-src" in pages[0]
    assert "fetch('/state')" in pages[0]
    assert "fetch(" not in written, "the page that is written asks nobody"
    assert "xyzzy" in written
    assert "xyzzy" not in pages[0]


def test_photographs_of_many_epochs_stay_small(tmp_path):
    run = fake_run(tmp_path / "a", epochs=40, picture_epochs=7, images=fake_images(8, (224, 224)), grid=(14, 14))
    path = write_report([run])
    assert path.stat().st_size < 3_000_000
    inputs = Reader(path.read_text()).named("input")
    sliders = [one["data-names"] or "" for one in inputs if one.get("type") == "range"]
    assert sliders
    assert all(len(names.split("|")) <= 8 for names in sliders)
    assert all((names.split("|")[0], names.split("|")[-1]) == ("epoch 1", "epoch 40") for names in sliders)


@pytest.mark.parametrize(
    ("epoch", "shown"), [(2.987, "3"), (1.494, "1.5"), (120.02, "120"), (0.0517, "0.052"), (0, "0")]
)
def test_epochs_of_pictures_are_short(epoch, shown):
    assert epoch_name(ProbeEpoch(epoch, 7, {})) == f"epoch {shown}"


def test_spread_keeps_the_ends():
    assert evenly_spaced(range(100), 6) == [0, 20, 40, 59, 79, 99]
    assert evenly_spaced([1, 2], 6) == [1, 2]


def test_the_package_imports_no_torch():
    files = sorted(Path(sys.modules["unveil.reporting"].__path__[0]).glob("*.py"))
    imported = {name for file in files for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", file.read_text(), re.M)}
    ours = {name for name in imported if name.startswith(".")}
    allowed = {f"..runs.{name}" for name in ("atomic", "console", "lock", "run_config")}
    assert {name for name in ours if name.startswith("..")} <= allowed
    assert {name.split(".")[0] for name in imported - ours} <= {*sys.stdlib_module_names, "numpy", "jaxtyping", "PIL"}


def test_of_a_very_long_log_some_steps_are_read_and_none_that_was_gone_back_behind(tmp_path, monkeypatch):
    def lines(steps: Iterable[int], loss: float) -> list[str]:
        kinds = [("step", step) for step in steps]
        return [json.dumps({"kind": kind, "step": step, "loss": loss, "skipped": step}) + "\n" for kind, step in kinds]

    signals = [json.dumps({"kind": "signals", "step": step, "rankme": 9.0}) + "\n" for step in (300, 900)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join([*lines(range(1, 701), 1.0), signals[0], *lines(range(401, 1001), 2.0), signals[1]]))
    whole = read_metrics(file, [])
    monkeypatch.setattr("unveil.reporting.journal.MOST_STEPS", 100)
    remarks: list[str] = []
    steps, validations, _ = read_metrics(file, remarks)
    assert remarks == ["metrics.jsonl: of 1,000 logged steps one in 10 is read."]
    assert [s.step for s in steps] == [*range(1, 1000, 10), 1000]
    assert steps == [s for s in whole[0] if s.step in {step.step for step in steps}]
    assert {s.loss for s in steps if s.step > 400} == {2.0}
    assert [v.step for v in validations] == [300, 900]


def test_flags_and_commands_in_sentences_are_code():
    said = prose("Give more --minutes, or `unveil x <a> --data D`; or --clip 1.")
    assert said == (
        'Give more <code class="flag">--minutes</code>, or <code>unveil x &lt;a&gt; <span class="flag">--data</span> D'
        '</code>; or <code class="flag">--clip 1</code>.'
    )


def test_numbers_and_settings_are_said_as_a_person_would(tmp_path):
    assert [count(n) for n in (242_000, 1_234_000, 86_100_000, 9_999)] == ["242 k", "1.23 M", "86.1 M", "9,999"]
    page = write_report(fake_run(tmp_path / "a", epochs=2)).read_text()
    environment = page[page.index('id="environment"') :]
    assert "2026-03-01 10:02<" in environment
    assert "batch size" not in environment, "it stands among the options"
    assert "were not measured on labelled images" not in page


def test_losses_of_different_targets_are_not_compared_and_runs_have_names(tmp_path):
    a, b = fake_run(tmp_path / "a", epochs=2), fake_run(tmp_path / "b", seed=1, epochs=2)
    assert "does not compare" not in write_report([a, b]).read_text()
    (b / "run.json").write_text((b / "run.json").read_text().replace("~/photos", "~/other"))
    for file in (b / "eval").iterdir():
        file.unlink()
    page = write_report([a, b]).read_text()
    assert "The runs differ in data: how high their losses are does not compare." in page
    assert '<span class="who">a</span>' in page
    assert '<span class="who">trained</span>' not in page
