"""The notebooks run from their first cell to the last, on fewer images, for a moment; they are kept without output."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import unveil
from unveil.modeling.encoder import SIZES

ROOT = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in ROOT.glob("*.ipynb"))
FEWER = {
    "count=200, held_out=40": "count=80, held_out=1",
    "SCENES, SIZE, MINUTES = 200, 64, 8": "SCENES, SIZE, MINUTES = 20, 32, 0.002",
}
FEWER |= {"MINUTES = 8": "MINUTES = 0.002", "size=64": "size=32"}


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / name).read_text())["cells"]
    return found


def shown(last: object) -> str:
    """What a notebook would show of the last value of a cell: HTML, a picture or text."""
    for name in ("_repr_html_", "_repr_png_"):
        if hasattr(last, name):
            return str(getattr(last, name)())
    return repr(last)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for size, (dim, _, heads) in SIZES.items():
        monkeypatch.setitem(SIZES, size, (dim, 2, heads))
    quick = functools.partial(unveil.pretrain, size="nano", workers=1)
    monkeypatch.setattr(unveil, "pretrain", quick, raising=False)
    scope: dict[str, object] = {"__name__": "__main__"}
    last = ""
    for place, cell in enumerate(cells(name)):
        if cell["cell_type"] != "code":
            continue
        text = "".join(cell["source"])
        for many, few in FEWER.items():
            text = text.replace(many, few)
        body = compile(text, f"{name}, cell {place}", "exec", flags=0)
        exec(body, scope)
        line = text.rstrip().splitlines()[-1]
        if line.isidentifier() or line.startswith("run."):
            last = shown(eval(line, scope))
    assert last
    said = capsys.readouterr().out
    if name == "rgbd.ipynb":
        assert "mean error" in said
    else:
        assert "images from 20 labels; by chance 10%" in said
        assert "unveil-run" in last


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_kept(name: str):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert (ROOT / name).stat().st_size < 20_000
