"""Chromium for tests of pages: how it is started, and what axe-core finds wrong with a page."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")
SCREENS = [(1400, "light"), (390, "dark")]
MORE_SCREENS = [(1400, "dark"), (800, "light"), (800, "dark"), (390, "light")]  # slow: two tell most
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def screens() -> list[Any]:
    """Widths and colour schemes, all but two of them slow."""
    return [*SCREENS, *(pytest.param(*screen, marks=pytest.mark.slow) for screen in MORE_SCREENS)]


def violations(page: Any) -> list[str]:
    """What axe-core finds on a page as it is: its rule, the element, and why. The test is skipped without axe-core."""
    pytest.importorskip("axe_playwright_python", reason="axe-core is not there: pip install axe-playwright-python")
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
