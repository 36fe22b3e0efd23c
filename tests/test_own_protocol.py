"""A protocol of one's own: the file in the documentation runs as it stands; what is wrong with a file is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from test_old_runs import OLD
from tiny_runs import write_images
from unveil.cli import main
from unveil.evaluation.registry import choose, data_for
from unveil.modeling.encoder import SIZES

DOCUMENT = Path(__file__).parents[1] / "docs" / "evaluation.md"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the documentation, beside a run and labelled images."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "mae", tmp_path / "runs" / "a")
    write_images(tmp_path / "labelled")
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    (block,) = [text for text in blocks if "needs: " in text]
    file = tmp_path / "nearest_mean.py"
    file.write_text(block)
    return file


def test_the_protocol_of_the_documentation_runs(own: Path, capsys: pytest.CaptureFixture[str]):
    (command,) = [line for line in DOCUMENT.read_text().splitlines() if "nearest_mean.py" in line and "unveil" in line]
    assert main(command.split()[1:]) == 0
    table = capsys.readouterr().out
    result = json.loads((own.parent / "runs/a/eval/nearest-mean.json").read_text())
    assert 0 < result["metrics"]["accuracy"] < 1
    assert set(result["baselines"]) == {"pixels", "untrained"}
    assert result["settings"]["order"] == 1
    assert result["settings"]["train_images"] == 32
    assert "in the 1-norm. No test set was given" in result["card"]
    assert "nearest-mean" in table
    assert (own.parent / "runs/a/eval/knn.json").exists()
    assert main(["report", "runs/a"]) == 0
    assert "nearest-mean" in (own.parent / "runs/a/report.html").read_text()


def test_its_options_are_flags_with_help(own: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "runs/a", "--protocol", "nearest_mean.py", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "options of nearest_mean.py" in shown
    assert "of the norm that measures distances: 2 is Euclidean; default 2" in " ".join(shown.split())
    assert main(["evaluate", "runs/a", "--data", "labelled", "--protocol", "nearest_mean.py", "--order", "near"]) == 2
    assert "--order near: expected a number" in capsys.readouterr().err


def test_other_metrics_than_accuracies_are_in_the_table(own: Path, capsys: pytest.CaptureFixture[str]):
    own.write_text(own.read_text().replace("accuracies(-distances, data.test_labels)", '{"mean_distance": 0.125}'))
    assert main(["evaluate", "runs/a", "--data", "labelled", "--protocol", "nearest_mean.py"]) == 0
    assert re.search(r"nearest-mean mean distance +0\.125 +0\.125 +0\.125", capsys.readouterr().out)


def test_what_is_wrong_with_a_file_is_said(own: Path):
    assert data_for([str(own)]) == "labelled images"
    with pytest.raises(ValueError, match="has no option 'lrs'; linear, lowshot"):
        choose([str(own)], {"lrs": (0.1,)})
    with pytest.raises(FileNotFoundError, match=r"there is no protocol file missing\.py"):
        choose(["missing.py"])
    own.write_text("import nowhere_to_be_found\n")
    with pytest.raises(ValueError, match=r"nearest_mean\.py, line 1: ModuleNotFoundError"):
        choose([str(own)])
    own.write_text("class Nothing:\n    pass\n")
    with pytest.raises(ValueError, match="has 0 classes with `needs` and `run`; a protocol is one"):
        choose([str(own)])
