"""The report in a real browser: no errors, nothing asked of a network, and what its first screen shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import CHROMIUM, FLAGS, needs_chromium, screens, violations
from report_fakes import fake_images, fake_run
from unveil.reporting.page import write_report


@pytest.fixture(scope="module")
def run_a(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "a")


@needs_chromium
def test_in_a_real_browser(run_a, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    b = fake_run(tmp_path / "b", seed=1, epochs=6, recipe="mae")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for i, runs in enumerate(([run_a], [run_a, b])):
            page = browser.new_page(viewport={"width": 390, "height": 844}, offline=True)
            said: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(write_report(runs, tmp_path / f"{i}.html").as_uri())
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert page.evaluate("document.images.length") > 20
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.hover("figure.chart svg")
            assert "epoch" in page.inner_text("figure.chart .readout")
            page.check("figure.chart .switch input")
            assert page.locator("figure.chart").first.locator("svg.log").is_visible()
            assert not page.locator("figure.chart").first.locator("svg.linear").is_visible()
            assert said == []
            assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        browser.close()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen(run_a, tmp_path, scheme):
    """At 1400 x 900: a sentence for each run, measures with whiskers, six triptychs, a slider over training."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    b = fake_run(tmp_path / "b", seed=1, epochs=6, recipe="mae", images=fake_images(6, (32, 32)), accuracy=0.3)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for i, runs in enumerate(([b], [run_a, b])):
            page = browser.new_page(viewport={"width": 1400, "height": 900}, offline=True, color_scheme=scheme)
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.goto(write_report(runs, tmp_path / f"{i}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollHeight") < 4000
            assert page.evaluate("document.documentElement.scrollWidth") <= 1400
            sentences = page.locator(".verdict .headline").all_inner_texts()
            assert len(sentences) == len(runs)
            assert all("Optimisation healthy; features " in sentence for sentence in sentences)
            boxes = [box.bounding_box() for box in page.locator(".overview .triptych").all()]
            assert len(boxes) == 6
            assert all(box and box["y"] + box["height"] <= 900 for box in boxes)
            sides = page.locator(".overview .triptych").first.locator("img:visible").all()
            assert [round(side.bounding_box()["width"]) for side in sides] == [160, 160, 160]
            for group in page.locator(".measures .bars").all():
                assert group.bounding_box()["y"] + group.bounding_box()["height"] <= 900
                assert group.locator(".bar u").count() == 2 + len(runs), "a whisker for each bar"
            assert "± " in page.locator(".measures .value").first.inner_text()
            page.locator(".overview .slider input").focus()
            for key, name in (("Home", "epoch 1"), ("ArrowRight", ""), ("End", "epoch ")):
                before = page.locator(".overview .over").first.locator("img:visible").get_attribute("src")
                page.keyboard.press(key)
                shown = page.locator(".overview .over").first.locator("img:visible")
                assert shown.count() == 1
                assert shown.get_attribute("src") != before
                assert name in page.locator(".overview .slider output").inner_text()
            assert said == []
            page.close()
        browser.close()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), screens())
def test_nothing_that_axe_finds_wrong(run_a, tmp_path, width, scheme):
    """Contrast, names of controls, alternatives of pictures, structure: with every part of the page open."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    b = fake_run(tmp_path / "b", seed=1, epochs=2, recipe="mae", images=fake_images(1, (16, 16)), grid=(2, 2))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme)
        page.goto(write_report([run_a, b], tmp_path / "page.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []
        browser.close()
