"""The pool, the blocks and the normalisation that are chosen on training images, without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import unveil
from tiny_runs import write_images
from unveil.cli import main
from unveil.evaluation.choice import retrieval
from unveil.modeling.encoder import SIZES

OLD = Path(__file__).parent / "old_runs"
QUICK = {"device": "cpu", "precision": "float32", "threads": 1, "baselines": False}
ALL = {"pool": "auto", "layer": ("auto",), "normalize": "auto"}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of two blocks and the images that it was trained on."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "mae", tmp_path / "mae")
    write_images(tmp_path / "images")
    return tmp_path


def chosen(run: str = "mae") -> dict:
    return json.loads(Path(run, "features", "chosen.json").read_text())


def test_what_is_chosen_is_kept_told_and_read_alike(capfd):
    words = "embed mae --data images --pool auto --layer auto --normalize auto --device cpu"
    assert main(words.split()) == 0
    content = chosen()
    best = content["chosen"]
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("features: "))
    assert f"--pool {best['pool']} --normalize {best['normalize']}, chosen by their rank" in line
    rows = {json.dumps({k: row[k] for k in best}): row for row in content["candidates"]}
    assert len(rows) == 2 * 4 * 3
    default, row = content["candidates"][0], rows[json.dumps(best)]
    assert (default["pool"], default["layers"], default["normalize"]) == ("mean", [2], "none")
    no_worse = [r for r in content["candidates"] if r["retrieval"] >= default["retrieval"]]
    assert row in no_worse
    assert row["rankme"] == max(r["rankme"] for r in no_worse)

    before = Path("mae", "features", "chosen.json").stat().st_mtime_ns
    encoder = unveil.load("mae", device="cpu", **ALL)
    stored = np.load("features.npz")
    source = unveil.Run.open("mae").train_images().source
    images = torch.stack([source.image(i) for i in range(len(source))])
    torch.testing.assert_close(encoder(images), torch.tensor(stored["features"]))
    (result,) = unveil.evaluate("mae", data="images", protocol=("knn",), **ALL, **QUICK)
    assert result.pool == best["pool"]
    assert result.settings["chosen"] == ["pool", "layer", "normalize"]
    assert "chosen on training images, without labels" in result.card
    assert Path("mae", "features", "chosen.json").stat().st_mtime_ns == before, "chosen once"


def test_what_is_given_is_not_chosen():
    encoder = unveil.load("mae", device="cpu", pool="cls", layer=[1], normalize="auto")
    assert (encoder.pool, encoder.layers) == ("cls", (1,))
    assert {(r["pool"], *r["layers"]) for r in chosen()["candidates"]} == {("cls", 1)}
    encoder = unveil.load("mae", device="cpu", pool="mean", layer="auto")
    assert {(r["pool"], r["normalize"]) for r in chosen()["candidates"]} == {("mean", "none")}
    assert encoder.layers in ((2,), (1, 2))


def test_other_weights_and_damaged_files_are_chosen_for_anew():
    unveil.load("mae", device="cpu", normalize="auto")
    first = chosen()
    Path("mae", "features", "chosen.json").write_text("[]")
    unveil.load("mae", device="cpu", normalize="auto")
    assert chosen() == first
    unveil.load("mae", device="cpu", normalize="auto", at_epoch=unveil.Run.open("mae").checkpoints()[0].epoch)
    assert chosen()["weights"] != first["weights"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": ("auto", 1)}, "--layer takes numbers of blocks or auto, not both"),
        ({"pool": "men"}, "pool is one of cls, mean, both, mean-std, cls-mean-std, auto; got 'men'"),
        ({"normalize": "white"}, "normalize is one of none, standardize, whiten, l2, auto; got 'white'"),
    ],
)
def test_mistakes(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        unveil.load("mae", device="cpu", **options)


def test_few_images_are_too_few_to_choose_on():
    for file in sorted(Path("images").rglob("*.png"))[20:]:
        file.unlink()
    with pytest.raises(ValueError, match="auto needs 30 images to choose on"):
        unveil.load("mae", device="cpu", normalize="auto")


def test_retrieval_against_counting():
    first, second = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    one, two = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1)[:, None] for x in (first, second))
    similarity = one @ two.T
    places = [1 + sum(similarity[i, j] > similarity[i, i] for j in range(12) if j != i) for i in range(12)]
    places += [1 + sum(similarity[j, i] > similarity[i, i] for j in range(12) if j != i) for i in range(12)]
    assert retrieval(first, second) == pytest.approx(np.mean(1 / np.array(places)))
    assert retrieval(first, first) == 1
    assert retrieval(torch.ones(4, 3), torch.ones(4, 3)) == 0.25, "of equal ones the own comes last"
