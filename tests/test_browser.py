"""The report of real runs, as the demo leaves it, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unveil.experiments.demo import recipes

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_demos_report_is_whole(browser, small_demo, width):
    names = list(recipes(small_demo))
    page = browser.new_page(viewport={"width": width, "height": 844}, offline=True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((small_demo / "report.html").as_uri())
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
