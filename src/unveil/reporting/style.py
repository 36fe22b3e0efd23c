"""The style sheets of a page, its script, which a page can do without, and its logo."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from .pictures import colours


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


_RAMP = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colours(np.linspace(0, 1, 9)).tolist())

_VISIBLE = {(0, 0), (28, 14), (14, 28)}  # the patches of the logo that are not hidden
_PATCHES = [
    f'<rect class="{"" if (x, y) in _VISIBLE else "f"}" x="{x}" y="{y}" width="12" height="12"/>'
    for y, x in product((0, 14, 28), repeat=2)
]
LOGO = f'<svg class="logo" viewBox="0 0 40 40" aria-hidden="true">{"".join(_PATCHES)}</svg>'

PALETTE = _asset("palette.css")  # of figures that stand alone, too
STYLE = PALETTE + _asset("page.css").replace("RAMP)", f"{_RAMP})")
SCRIPT = _asset("page.js") + _asset("looks.js")
LIVE = _asset("live.js")
