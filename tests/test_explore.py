"""`unveil explore`: what the page is told, in a browser too; strangers, broken files, no weights."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unveil.commands.explore.images as images_module
from browser import CHROMIUM, FLAGS, needs_chromium, screens, violations
from tiny_runs import Place, write_images, write_recipe
from unveil.cli import main
from unveil.commands.explore import _opened
from unveil.commands.explore.app import Explorer
from unveil.commands.explore.masks import METHODS, on_grid
from unveil.commands.explore.worker import Superseded, Worker
from unveil.reporting.server import Answer, Request, Server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("explore")
    here = Place(path, write_recipe(path), str(write_images(path / "images")))
    assert here.pretrain("--epochs", "1", "--warmup-epochs", "0", "--batch-size", "10", "--image-size", "16") == 0
    shutil.copytree(here.run, path / "twin")
    return here


@pytest.fixture(scope="module")
def explorer(place: Place) -> Iterator[Explorer]:
    explorer = _opened([str(place.run), str(place.path / "twin")], (), place.data, 12, "cpu", False)
    yield explorer
    explorer.close()


def post(explorer: Explorer, path: str, **params: Any) -> dict[str, Any]:
    return told(explorer(Request("POST", path, body=json.dumps(params).encode())))


def get(explorer: Explorer, path: str, **query: str) -> Answer:
    return explorer(Request("GET", path, query))


def told(answer: Answer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(answer.body)
    return content


def png_bytes(size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_every_masking_gives_a_mask_a_prediction_and_its_error(explorer: Explorer):
    state = told(get(explorer, "/state"))
    assert [run["grid"] for run in state["runs"]] == [[4, 4], [4, 4]]
    assert {method["id"] for method in state["methods"]} == METHODS.keys()
    masks = {}
    for method in METHODS.keys() - {"drawn"}:
        answer = post(explorer, "/mask", image="s:0", method=method, visible={"rgb": 5}, seed=3)
        assert len(answer["visible"]["rgb"]) == 5, answer
        (entry,) = answer["maps"]
        wanted = {"original", "attention", "prediction", "alone", "filled", "error"}
        assert entry["pictures"].keys() == wanted
        assert entry["errors"]["prediction"] > 0
        assert entry["errors"]["filled"] > 0
        masks[method] = tuple(answer["visible"]["rgb"])
    assert set(masks["hard"]).isdisjoint(masks["low"])  # the attended stay hidden there, and visible here
    again = post(explorer, "/mask", image="s:0", method="uniform", visible={"rgb": 5}, seed=3)
    other = post(explorer, "/mask", image="s:0", method="uniform", visible={"rgb": 5}, seed=4)
    assert tuple(again["visible"]["rgb"]) == masks["uniform"] != tuple(other["visible"]["rgb"])
    drawn = post(explorer, "/mask", run=1, image="s:0", method="drawn", drawn={"rgb": [0, 5]}, grid=[4, 4])
    assert drawn["visible"] == {"rgb": [0, 5]}
    none = post(explorer, "/mask", image="s:0", method="drawn", drawn={"rgb": []}, grid=[4, 4])
    assert len(none["visible"]["rgb"]) == 1  # a model needs one


def test_a_mask_passes_to_a_run_of_another_grid():
    assert on_grid([0, 1, 4, 5], (4, 4), (2, 2)) == [0]
    assert on_grid([0], (2, 2), (4, 4)) == [0, 1, 4, 5]
    with pytest.raises(ValueError, match="below 16"):
        on_grid([16], (4, 4), (2, 2))


def test_what_is_predicted_is_that_of_the_model(explorer: Explorer):
    """The passes in memory give what one whole forward gives."""
    from unveil.commands.explore.masks import masker_of
    from unveil.commands.explore.models import predict

    explored = explorer.slots[0].model()
    assert explored.model is not None
    chosen = explorer.images.get("s:1")
    with torch.no_grad():
        unmasked = explorer._unmasked(explored, chosen)
        masker = masker_of({"rgb": [1, 2, 7]}, unmasked.blocks.layout)
        ours = predict(explored.model, unmasked, masker)
        theirs = explored.model.encode_decode(unmasked.batch, masker)
    assert torch.equal(ours.decoded["pixels"], theirs.decoded["pixels"])
    assert sorted(ours.mask.visible[0].tolist()) == [1, 2, 7]


def test_attention_features_and_neighbours(explorer: Explorer):
    answer = post(explorer, "/attention", image="s:0", layer=1)
    assert len(answer["heads"]) == 2
    assert all(0 < share <= 1.001 for share in answer["share"])
    of_patch = post(explorer, "/attention", image="s:0", layer=1, patch=3)
    assert of_patch["mean"] != answer["mean"]
    features = post(explorer, "/features", image="s:0", layer=2, patch=3)
    assert features["patch"] == 3
    assert -1 <= features["lowest"] < 1
    assert post(explorer, "/features", image="s:0", layer=2, patch=9)["similarity"] != features["similarity"]
    ready = threading.Event()
    for _ in range(200):
        near = post(explorer, "/neighbours", image="s:0")
        if "features" in near:
            break
        ready.wait(0.02)
    assert (near["done"], near["total"], near["of"]) == (12, 12, len(explorer.images.gallery))
    for row in (near["features"], near["colours"]):
        assert len(row) == 8
        assert "s:0" not in [one["id"] for one in row]
        assert [one["cosine"] for one in row] == sorted((one["cosine"] for one in row), reverse=True)


def test_uploads_are_bounded_and_broken_ones_are_sentences(explorer: Explorer, monkeypatch: pytest.MonkeyPatch):
    def upload(content: bytes, **query: str) -> dict[str, Any]:
        try:
            return told(explorer(Request("POST", "/upload", {"name": "mine.png", **query}, content)))
        except ValueError as error:  # which the server answers with
            return {"error": str(error)}

    sent = upload(png_bytes())
    assert sent["name"] == "mine.png"
    assert post(explorer, "/mask", image=sent["id"], method="uniform", visible={"rgb": 4})["maps"]
    assert get(explorer, "/thumbnail", image=sent["id"]).body[:4] == b"\x89PNG"
    assert "0 bytes" in upload(b"")["error"]
    assert "not an image" in upload(b"<svg></svg>")["error"]
    assert "mine.png" in upload(png_bytes()[:-40])["error"]
    assert "no run here reads 'depth'" in upload(png_bytes(), modality="depth")["error"]
    monkeypatch.setattr(images_module, "MAX_PIXELS", 100)
    assert "pixels are more than 100: make it smaller" in upload(png_bytes())["error"]
    for path, params, message in (
        ("/mask", {"image": "u:0"}, "not in memory any more"),
        ("/mask", {"image": "s:999999"}, "not in memory any more"),
        ("/mask", {"image": "s:0", "method": "x"}, "no masking 'x'"),
        ("/mask", {"image": "s:0", "method": "hard", "guide": "teacher:x"}, "no teacher 'x'"),
        ("/mask", {"image": "s:0", "method": "drawn", "drawn": {"rgb": [99]}, "grid": [4, 4]}, "below 16"),
        ("/mask", {"image": "s:0", "run": 9}, "run is a whole number"),
        ("/attention", {"image": "s:0", "layer": 3}, "layer is a whole number from 1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            post(explorer, path, **params)
    assert get(explorer, "/x").status == 404


def test_a_newer_request_takes_the_place_of_one_that_waits():
    worker, entered, go = Worker(), threading.Event(), threading.Event()
    computed: list[int] = []

    def slow(check: Any) -> None:
        entered.set()
        go.wait(5)
        check()
        computed.append(1)

    results: list[str] = []

    def ask(number: int, job: Any) -> None:
        try:
            worker.run(job, "mask", number)
            results.append(f"{number} done")
        except Superseded:
            results.append(f"{number} superseded")

    first = threading.Thread(target=ask, args=(1, slow))
    first.start()
    assert entered.wait(5)
    others = [threading.Thread(target=ask, args=(n, lambda check, n=n: computed.append(n))) for n in (2, 3)]
    for other in others:
        other.start()
    while worker._newest["mask"] < 3:
        pass
    go.set()
    for thread in (first, *others):
        thread.join(5)
    assert sorted(results) == ["1 superseded", "2 superseded", "3 done"]
    assert computed == [3]
    worker.close()


def test_runs_of_strangers_and_runs_without_weights(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stranger, young = tmp_path / "stranger", tmp_path / "young"
    shutil.copytree(place.run, stranger)
    recipe = stranger / "recipe.py"
    recipe.write_text(recipe.read_text() + "\n# of somebody else\n")
    shutil.copytree(place.run, young)
    shutil.rmtree(young / "checkpoints")
    explorer = _opened([str(young), str(stranger)], (), place.data, 5, "cpu", False)
    waits, alone = told(get(explorer, "/state"))["runs"]
    assert "no" in waits["error"]
    assert "--trust" in alone["notes"][0]
    assert not alone["predicts"]
    with pytest.raises(ValueError, match="checkpoint"):
        post(explorer, "/mask", run=0, image="s:0")
    answer = post(explorer, "/mask", run=1, image="s:0", method="hard", visible={"rgb": 4})
    assert answer["maps"][0]["pictures"].keys() == {"original", "attention"}
    with pytest.raises(ValueError, match="need its recipe"):
        post(explorer, "/mask", run=1, image="s:0", method="own", visible={"rgb": 4})
    shutil.copytree(place.run / "checkpoints", young / "checkpoints")
    assert not post(explorer, "/reload", run=0)["runs"][0]["error"]
    explorer.close()
    assert main(["explore", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    taken = Server(lambda request: Answer(b""))
    assert main(["explore", str(place.run), "--port", str(taken.server_port)]) == 2
    assert f"error: --port {taken.server_port} is taken" in capsys.readouterr().err
    taken.server_close()
    monkeypatch.setattr(Server, "run", lambda self, what: print(what, self.url))
    assert main(["explore", str(place.run)]) == 0
    assert "explorer http://127.0.0.1:" in capsys.readouterr().out


@needs_chromium
def test_the_page_in_a_browser(explorer: Explorer, tmp_path: Path):
    """An image is chosen, a mask drawn, a slider moved, a picture uploaded: the pictures change, without an error."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "mine.png").write_bytes(png_bytes())
    (tmp_path / "broken.png").write_bytes(png_bytes()[:-40])
    with playwright.sync_playwright() as driver, served(explorer) as url:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(url)
        shown = "#masked .run-result:first-child img[alt^=Prediction]"
        page.wait_for_selector(shown)

        def changed(by: Any) -> str:
            before = page.get_attribute(shown, "src")
            by()
            page.wait_for_function("([s, b]) => document.querySelector(s)?.src !== b", arg=[shown, before])
            return str(page.get_attribute(shown, "src"))

        assert page.locator("#masked .run-result").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        changed(lambda: page.click("#gallery button:nth-child(2)"))
        changed(lambda: page.click("#masked .mask >> nth=0", position={"x": 8, "y": 8}))
        assert page.input_value("#method") == "drawn"
        page.wait_for_function("() => document.querySelectorAll('#masked .stale').length === 0")
        page.focus("#masked .mask")
        changed(lambda: page.keyboard.press("Space"))
        changed(lambda: page.fill("#hidden", "6"))
        assert page.input_value("#method") == "uniform"
        assert "6 of 16" in page.inner_text("#hidden-text")
        changed(lambda: page.set_input_files("#file", str(tmp_path / "mine.png")))
        assert page.inner_text("#image-name") == "mine.png"
        for view, made in (("attention", ".heads img"), ("features", ".pictures img")):
            page.click(f"#tab-{view}")
            page.wait_for_selector(f"#view-{view} {made}")
        assert not complaints
        page.set_input_files("#file", str(tmp_path / "broken.png"))
        page.wait_for_selector("#error:not([hidden])")
        assert "broken.png" in page.inner_text("#error")
        browser.close()


@contextmanager
def served(explorer: Explorer) -> Iterator[str]:
    """The address at which a page is served."""
    server = Server(explorer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


@needs_chromium
def test_the_page_says_what_is_not_there(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stranger's run, one that has no weights yet, pictures that are too large or none: each is told in place."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    monkeypatch.setattr(images_module, "MAX_PIXELS", 1000)
    for name, content in (("large.png", png_bytes()), ("text.png", b"no picture"), ("small.png", png_bytes((20, 20)))):
        (tmp_path / name).write_bytes(content)
    young, stranger = tmp_path / "young", tmp_path / "stranger"
    for run in (young, stranger):
        shutil.copytree(place.run, run)
    shutil.rmtree(young / "checkpoints")
    with (stranger / "recipe.py").open("a") as recipe:
        recipe.write("\n# of somebody else, seen in a browser\n")
    explorer = _opened([str(young), str(stranger)], (), place.data, 5, "cpu", False)
    with playwright.sync_playwright() as driver, served(explorer) as url:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(url)
        page.wait_for_selector("#masked .note")
        assert "--trust" in page.inner_text("#masked .note")
        assert page.locator("#masked img[alt^=Prediction]").count() == 0
        page.focus("#tab-mask")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#view-attention .heads img")
        page.click("#tab-mask")
        for name, said in (("large.png", "make it smaller"), ("text.png", "not an image"), ("small.png", "")):
            page.set_input_files("#file", str(tmp_path / name))
            page.wait_for_function("is => document.querySelector('#error').hidden === !is", arg=bool(said))
            assert said in page.inner_text("#error")
        page.select_option("#runs select", label="young")
        page.wait_for_selector("#masked [role=alert]")
        assert "checkpoint" in page.inner_text("#masked [role=alert]")
        shutil.copytree(place.run / "checkpoints", young / "checkpoints")
        page.click("text=Look for newer weights")
        page.wait_for_selector("#masked img[alt^=Prediction]")
        browser.close()
    explorer.close()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), screens())
def test_nothing_that_axe_finds_wrong(explorer: Explorer, width: int, scheme: str):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver, served(explorer) as url:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(url)
        made = {"mask": "img[alt^=Prediction]", "attention": ".heads img", "features": "img", "neighbours": "img"}
        for view, shown in made.items():
            page.click(f"#tab-{view}")
            page.wait_for_selector(f"#view-{view} {shown}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert violations(page) == []
        browser.close()
