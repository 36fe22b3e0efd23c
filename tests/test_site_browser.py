"""The site in a real browser: at three widths, light and dark, nothing that axe-core finds wrong, and no errors."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from browser import CHROMIUM, FLAGS, MORE_SCREENS, SCREENS, needs_chromium, violations
from test_readme import ROOT

pytestmark = pytest.mark.slow
HAND_WRITTEN = ("index.html", "python.html", "how-to.html", "comparison.html", "paper-cmtmae.html", "reference.html")


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """A test says nothing of the requests."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The built site's folder, and the address that serves it: browsers let no page of a file read another."""
    if not (find_spec("material") and find_spec("mkdocstrings")):
        pytest.skip("the site needs pip install 'unveil[docs]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run([ROOT / ".ci/docs", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [*SCREENS, *MORE_SCREENS])
def test_nothing_that_axe_finds_wrong(site, width, scheme):
    """All pages on the first two screens; on the others those that show every kind of part."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder, address = site
    pages = sorted(str(page.relative_to(folder)) for page in folder.rglob("*.html"))
    assert set(HAND_WRITTEN) <= set(pages)
    found: dict[str, list[str]] = {}
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        for name in pages if (width, scheme) in SCREENS else HAND_WRITTEN:
            page.goto(f"{address}/{name}")
            page.wait_for_timeout(200)  # the theme's script makes boxes for tables and buttons for code
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            found |= {name: wrong} if (wrong := violations(page)) else {}
        browser.close()
    assert found == {}
    assert said == []


@needs_chromium
def test_the_search_finds_a_page(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{site[1]}/index.html")
        page.wait_for_timeout(500)
        page.click(".md-search__input")
        page.keyboard.type("rankme")
        page.wait_for_selector(".md-search-result__link")
        assert page.locator(".md-search-result__link").count() > 0
        browser.close()
