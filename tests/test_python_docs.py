"""docs/python.md and the examples in docstrings run as they stand, in the folder of one tiny run."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import unveil
import unveil.data
from test_readme import blocks
from tiny_runs import write_images
from unveil.modeling.image_encoder import FeatureExtractor
from unveil.sklearn import Encoder

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


METHODS = {
    unveil.Run: (
        "checkpoints", "curves", "encoder", "guidance", "held_out", "model", "neighbours", "reconstruct",
    ),
    FeatureExtractor: ("attention", "features", "intermediate_features", "patch_features", "preprocess_config"),
}  # fmt: skip
SLOW = {"bench", "demo"}  # which time a machine


def documented() -> dict[str, object]:
    """The public names, and the methods that a notebook begins with."""
    public = {name: getattr(unveil, name) for name in unveil.__all__ if name != "__version__"}
    methods = {f"{of.__name__}.{name}": getattr(of, name) for of, names in METHODS.items() for name in names}
    return {**public, **methods, "data.open": unveil.data.open, "sklearn.Encoder": Encoder}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(documented())]
)
def test_an_example_shows_what_is_returned(name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("images", "runs"):
        shutil.copytree(home / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(documented()[name]) or "", {}, name, None, 0)
    assert test.examples, f"unveil.{name} has no example in its docstring"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = doctest.DocTestRunner(optionflags=flags).run(test, out=(said := list[str]()).append)
    assert not failed.failed, re.sub(r"\n+", "\n", "".join(said))
