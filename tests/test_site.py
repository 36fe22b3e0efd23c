"""The site: its pages, its reference, and how-tos whose commands run or, where they need more, are understood."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

import unveil
from test_readme import ROOT, blocks, run_line
from tiny_runs import RECIPE, write_images
from unveil.cli import main
from unveil.cli.command import Command
from unveil.modeling.encoder import SIZES

HOW_TO = "docs/how-to.md"


class Understood(BaseException):
    """The flags of a command were read."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("how-to")
    write_images(home / "photos", 16)
    write_images(home / "labelled", 20)
    return home


@pytest.mark.slow
def test_commands_of_how_tos_run(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for size, (dim, _, heads) in SIZES.items():
        monkeypatch.setitem(SIZES, size, (dim, 1, heads))
    lines = [line for language, text in blocks(HOW_TO) if language == "bash" for line in text.splitlines()]
    assert {line.split()[1] for line in lines} == {"pretrain", "report", "look", "evaluate", "predict"}
    for line in lines:
        run_line(line)
    assert (home / "predictions/predictions.csv").is_file()


@pytest.mark.parametrize(
    "line",
    [line for language, text in blocks(HOW_TO) if language == "text" for line in text.splitlines()],
)
def test_commands_that_need_more_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_recipe.py").write_text(RECIPE)
    protocol = next(text for language, text in blocks("docs/evaluation.md") if "class NearestMean" in text)
    (tmp_path / "nearest_mean.py").write_text(protocol)
    read = Command.read

    def understood(self: Command, *given, **named):
        raise Understood(read(self, *given, **named))

    monkeypatch.setattr(Command, "read", understood)
    words = shlex.split(line)
    with pytest.raises(Understood):
        main(words[words.index("unveil") + 1 :])


def test_the_target_of_the_how_to_is_one():
    (text,) = [text for language, text in blocks(HOW_TO) if language == "python"]
    names: dict = {}
    exec(compile(text, HOW_TO, "exec"), names)
    images, values = names["batch"].maps["rgb"], names["values"]
    assert values.shape == (2, 4, 3)
    torch.testing.assert_close(values[:, 0], images[:, :, :16, :16].mean((2, 3)))


def pages(entries: list) -> list[str]:
    nested = [value for entry in entries for value in entry.values()]
    return [page for value in nested for page in (pages(value) if isinstance(value, list) else [value])]


def test_every_page_has_its_place_on_the_site():
    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    here = [str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*here, "README.md", "CONTRIBUTING.md", "SECURITY.md"])


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/reference.md").read_text()
    objects = [getattr(unveil, name) for name in unveil.__all__ if name != "__version__"]
    listed = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith(":::")}
    assert {thing.__name__ for thing in objects} <= listed


def test_it_builds_strictly(tmp_path: Path):
    if not (find_spec("material") and find_spec("mkdocstrings")):
        pytest.skip("the site needs pip install 'unveil[docs]'")
    done = subprocess.run([ROOT / ".ci/docs", str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/index.html").is_file()
    shutil.rmtree(tmp_path / "site")
