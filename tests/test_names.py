"""Names and paths as people have them: bytes that are no UTF-8, homes of users that are not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_runs import write_images, write_recipe
from unveil.cli import main

SRC = Path(__file__).parents[1] / "src"


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_utf8_are_made_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Old archives hold names in Latin-1: a run on them is inspected, trained, reported and drawn."""
    monkeypatch.chdir(tmp_path)
    images = sorted(write_images(tmp_path / "set").rglob("*.png"))
    os.makedirs(b"d\xe9p\xf4t/caf\xe9")
    for path in images:
        os.rename(os.fsencode(path), b"d\xe9p\xf4t/caf\xe9/\xf1" + os.fsencode(path.name))
    Path(os.fsdecode(b"d\xe9p\xf4t/br\xfcchig.png")).write_bytes(b"no image")
    data = os.fsdecode(b"d\xe9p\xf4t")
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(SRC)}
    assert main(["pretrain", "mae", "--data", data, "--out", data + "-run"]) == 2  # safetensors needs UTF-8
    words = [sys.executable, "-m", "unveil", "inspect", data]
    printed = subprocess.run(words, env=strict, capture_output=True, text=True, check=True).stdout
    assert "br\\udcfcchig.png: not an image" in printed
    run = "runs/a"
    assert main(["pretrain", write_recipe(tmp_path), "--data", data, "--epochs", "1", "--out", run]) == 0
    assert main(["report", run]) == 0
    assert "br\\udcfcchig.png" in Path(run, "report.html").read_text(encoding="utf-8")
    assert main(["look", run]) == 0
    assert main(["evaluate", run, "--data", data, "--protocol", "reconstruct"]) == 0
    assert main(["embed", run, "--data", data, "--out", "features.npz"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{}"],
        ["pretrain", "mae", "--data", "{}"],
        ["pretrain", "mae", "--data", "scenes", "--out", "{}"],
        ["pretrain", "mae", "--data", "scenes", "--init-from", "{}"],
        ["pretrain", "--config", "{}"],
        ["evaluate", "{}", "--data", "scenes"],
        ["embed", "{}", "--data", "scenes"],
        ["report", "{}"],
        ["look", "{}"],
    ],
)
def test_the_home_of_an_unknown_user_ends_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([word.format("~no-such-user/x") for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [
        "error: '~no-such-user/x': there is no home folder for ~no-such-user; write the whole path"
    ]
    assert not any("Traceback" in line for line in lines)


def test_a_tilde_is_expanded_in_one_place():
    """`Path.expanduser` raises RuntimeError, which would end in a traceback."""
    calls = {path.name for path in SRC.rglob("*.py") if re.search(r"expanduser\(", path.read_text(encoding="utf-8"))}
    assert calls == {"console.py"}
