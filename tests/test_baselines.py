"""Scores of baselines are taken from an earlier evaluation where everything that they depend on is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.data.sources import open_source
from unveil.evaluation import baselines
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.features import RawPixels
from unveil.evaluation.protocols.knn import Knn
from unveil.evaluation.protocols.knn_whitened import KnnWhitened
from unveil.evaluation.protocols.linear_lbfgs import LinearLBFGS
from unveil.evaluation.protocols.lowshot import Lowshot
from unveil.evaluation.run import UNTRAINED, run_protocols
from unveil.evaluation.types import THIS_RUN, Context
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.types import RGB


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, count: int = 15) -> str:
    """Pictures of two classes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 200, (8, 8, 3)) + 40 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


class Spied(ImageEncoder):
    """An encoder that counts the batches it encodes."""

    batches = 0

    def features(self, images, pool):
        self.batches += len(images) > 2  # the two are those that tell encoders apart
        return super().features(images, pool)


def vit(seed: int = 0, heads: int = 2, modality=RGB, size: int = 8) -> Spied:
    torch.manual_seed(seed)
    return Spied(Encoder((modality,), (size,), 4, 8, 2, heads))


def batches_of(data: ImageSplit, protocols=None, encoder=None, name=UNTRAINED, reuse=True, **context) -> int:
    """How many batches of the baseline are encoded by an evaluation."""
    encoder, run = encoder or vit(), vit(seed=9)
    subjects = {THIS_RUN: run, name: encoder}
    results = run_protocols(protocols or {"knn": Knn()}, subjects, data, Context(**context), reuse)
    assert run.batches == 2
    assert all(result.baselines.keys() == {name} for result in results)
    return encoder.batches


def test_a_baseline_is_measured_once_for_the_same_images_wherever_they_lie(tmp_path):
    notes = []
    here = ImageSplit.of(open_source(write(tmp_path / "here")), seed=0)
    there = ImageSplit.of(open_source(write(tmp_path / "there")), seed=0)
    assert here.identity != there.identity
    assert batches_of(here) == 2
    assert batches_of(there, note=notes.append) == 0
    assert notes == ["knn of untrained: as measured before on the same images (--no-cache measures it again)"]


def test_cached_scores_are_those_that_were_measured(tmp_path):
    data = ImageSplit.of(open_source(write(tmp_path / "data")))
    protocols = {"knn": Knn(), "linear-lbfgs": LinearLBFGS(), "lowshot": Lowshot(by="knn", shots=("8",), draws=2)}
    subjects = {THIS_RUN: vit(1), "pixels": RawPixels(RGB, (8, 8)), UNTRAINED: vit()}
    plain, first, second = (run_protocols(protocols, subjects, data, reuse=reuse) for reuse in (False, True, True))
    for one, two, three in zip(plain, first, second, strict=True):
        assert one.baselines == two.baselines == three.baselines
        assert one.metrics == two.metrics == three.metrics


def test_other_protocols_take_the_features(tmp_path):
    data, notes = ImageSplit.of(open_source(write(tmp_path / "data"))), []
    assert batches_of(data) == 2
    assert batches_of(data, {"knn-whitened": KnnWhitened()}, note=notes.append) == 0
    assert notes == ["features of untrained: as extracted before (--no-cache extracts them again)"]
    fresh = run_protocols({"knn-whitened": KnnWhitened()}, {THIS_RUN: vit(9), UNTRAINED: vit()}, data)
    kept = run_protocols({"knn-whitened": KnnWhitened()}, {THIS_RUN: vit(9), UNTRAINED: vit()}, data, reuse=True)
    assert fresh[0].baselines == kept[0].baselines


def _pixel(folder: Path) -> None:
    pixels = np.array(Image.open(folder / "a" / "0.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "a" / "0.png")


@pytest.mark.parametrize(
    "change",
    [
        *({"encoder": e} for e in ("weights", "heads", "normalisation", "size")),
        *({"data": d} for d in ("pixel", "class", "order", "fewer", "split", "channels")),
        *({"context": c} for c in ({"precision": "bf16"}, {"pool": "mean"})),
        {"name": "another"},
        {"code": True},
    ],
    ids=str,
)
def test_what_differs_is_measured_again(tmp_path, monkeypatch, change):
    """Of features: with another protocol of the same data, so that no score is known either way."""
    folder = Path(write(tmp_path / "data"))
    data = ImageSplit.of(open_source(str(folder)))
    assert batches_of(data) == 2
    assert batches_of(data, {"knn-whitened": KnnWhitened()}) == 0

    encoder, context = vit(), change.get("context", {})
    if "encoder" in change:
        other = replace(RGB, mean=(0.1, 0.2, 0.3))
        encoder = {
            "weights": lambda: vit(seed=1),
            "heads": lambda: vit(heads=4),
            "normalisation": lambda: vit(modality=other),
            "size": lambda: vit(size=12),
        }[change["encoder"]]()
    if change.get("data") == "pixel":
        _pixel(folder)
    elif change.get("data") == "order":
        (folder / "a" / "0.png").rename(folder / "a" / "x.png")
    elif change.get("data") == "channels":
        grey = replace(RGB, channels=1, mean=(0.5,), std=(0.5,))
        encoder = vit(modality=grey)
    source = open_source(str(folder), 1 if change.get("data") == "channels" else None)
    limit, seed = 20 if change.get("data") == "fewer" else None, int(change.get("data") == "split")
    changed = ImageSplit.of(source, limit=limit, seed=seed)
    if change.get("data") == "class":
        changed = replace(changed, train=replace(changed.train, numbers=[1 - n for n in changed.train.numbers]))
    if "code" in change:
        monkeypatch.setattr(baselines, "_code", lambda: "newer")
    subjects = {THIS_RUN: encoder if change.get("data") == "channels" else vit(9)}
    subjects[change.get("name", UNTRAINED)] = encoder
    run_protocols({"knn": Knn(), "knn-whitened": KnnWhitened()}, subjects, changed, Context(**context), True)
    assert encoder.batches >= 2


@dataclass(frozen=True)
class OtherShrinkage(KnnWhitened):
    shrinkage: float = 0.5


@pytest.mark.parametrize("change", ["seed", "option", "protocol"])
def test_scores_depend_on_the_protocol_its_options_and_the_seed(tmp_path, monkeypatch, change):
    data = ImageSplit.of(open_source(write(tmp_path / "data")))
    measured = []
    monkeypatch.setattr(
        "unveil.evaluation.run.run_cached",
        lambda name, *rest: measured.append(name) or Knn().run(None, rest[2], rest[3]),
    )
    lowshot = Lowshot(by="knn", shots=("8",), draws=2)
    options = {"seed": {"seed": 1}}.get(change, {})
    other = replace(lowshot, draws=3) if change == "option" else Knn() if change == "protocol" else lowshot
    batches_of(data, {"lowshot": lowshot})
    batches_of(data, {"lowshot": lowshot})
    assert measured == ["lowshot"] * 3  # of the run twice, of the baseline once
    batches_of(data, {"lowshot": other}, **options)
    assert measured == ["lowshot"] * 5


def test_protocols_of_the_user_and_damaged_entries_are_measured(tmp_path, folder):
    data = ImageSplit.of(open_source(write(tmp_path / "data")))
    own = {"own": OtherShrinkage()}
    assert OtherShrinkage.__module__ == __name__
    assert batches_of(data, own) == 2
    assert [entry.parent.name for entry in folder.rglob("*.entry")] == ["baseline-features-1"]
    for entry in folder.rglob("*.entry"):
        entry.write_bytes(entry.read_bytes()[:-1])
    assert batches_of(data, own) == 2


@pytest.mark.parametrize("off", ["reuse", "environment", "rendered"])
def test_nothing_is_kept_where_it_is_off_or_images_have_no_files(tmp_path, monkeypatch, folder, off):
    if off == "environment":
        monkeypatch.setenv("UNVEIL_CACHE", "off")
    data = ImageSplit.of(open_source("scenes:count=24,seed=1" if off == "rendered" else write(tmp_path / "data")))
    for _ in range(2):
        assert batches_of(data, reuse=off != "reuse", micro_batch=100) == 2
    assert not list(folder.rglob("*.entry"))


_EVALUATE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_baselines import *
data = ImageSplit.of(open_source(sys.argv[2]))
subjects = {THIS_RUN: vit(9), "pixels": RawPixels(RGB, (8, 8)), UNTRAINED: vit()}
for _ in range(3):
    (result,) = run_protocols({"knn": Knn()}, subjects, data, Context(precision="float32"), True)
print(result.baselines)
"""


def test_processes_share_what_was_measured(tmp_path):
    words = [sys.executable, "-c", _EVALUATE, str(Path(__file__).parent), write(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(Path(unveil.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    first, second = (process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second
    data = ImageSplit.of(open_source(words[-1]))
    assert batches_of(data) == 0
