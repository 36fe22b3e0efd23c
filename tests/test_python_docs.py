"""docs/python.md and the examples in docstrings run as they stand, in the folder of one tiny run."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import unveil
import unveil.data
from test_readme import blocks
from tiny_runs import write_images

TRAIN = {"size": "nano", "image_size": 16, "patch": 4, "epochs": 0.5, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `images` and the run `runs/a`, the working directory."""
    path = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        write_images(Path("images"), 40)
        unveil.pretrain("mae", data="images", out="runs/a", **TRAIN)
        yield path


def test_the_page_runs(capsys: pytest.CaptureFixture[str]):
    scope: dict[str, object] = {}
    for language, text in blocks("docs/python.md"):
        assert language == "python"
        exec(compile(text, "docs/python.md", "exec"), scope)
    assert Path("reconstructions.png").is_file()
    assert "torch.Size([2, 3, 16, 16]) tensor(0.7500)" in capsys.readouterr().out


def examples() -> dict[str, str]:
    """The docstrings of the public names that have an example, and of the methods of a run."""
    run = {f"Run.{name}": getattr(unveil.Run, name) for name in ("reconstruct", "guidance", "neighbours", "curves")}
    public = {name: getattr(unveil, name) for name in unveil.__all__ if name != "__version__"}
    documented = {**public, **run, "data.open": unveil.data.open}
    return {name: text for name, of in documented.items() if ">>>" in (text := inspect.getdoc(of) or "")}


@pytest.mark.parametrize("name", examples())
def test_an_example_shows_what_is_returned(name: str, capsys: pytest.CaptureFixture[str]):
    test = doctest.DocTestParser().get_doctest(examples()[name], {}, name, None, 0)
    assert test.examples
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=(said := list[str]()).append)
    assert not failed.failed, re.sub(r"\n+", "\n", "".join(said))
