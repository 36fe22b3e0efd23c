"""What makes an evaluation fast does not change it: bf16, views that are kept, threads that follow the load."""

from __future__ import annotations

import json
import math
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import unveil
from test_evaluate import Patches, coloured
from tiny_runs import write_images
from unveil.data.kept_views import KeptViews
from unveil.data.loader import Loader
from unveil.data.sources import Unreadable
from unveil.data.transforms import CenterView
from unveil.evaluation import encoding
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.features import extract
from unveil.evaluation.finetuning import FineTuner, FineTuning
from unveil.evaluation.protocols.knn import Knn
from unveil.evaluation.run import run_protocols
from unveil.evaluation.types import THIS_RUN, Context
from unveil.modeling import image_encoder
from unveil.modeling.encoder import SIZES, Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.types import DEPTH, RGB
from unveil.runs import threads

SIDE = (8, 8)


def vit(depth: int = 3) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(Encoder((RGB,), SIDE, 2, 64, depth, 4))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_in_bf16_agree_with_float32(pool):
    """Relative to the spread of the features within 1 %, so that scores agree within noise; and they are not equal."""
    whole, half = (extract(vit(), coloured(40), pool, precision=p).values for p in ("float32", "bf16"))
    error, spread = (half - whole).norm(), (whole - whole.mean(0)).norm()
    assert 0 < error < 0.02 * spread
    assert half.dtype == torch.float32


def test_auto_is_float32_without_native_bf16_and_bf16_with_it(monkeypatch):
    features = {p: extract(vit(), coloured(9), "mean", precision=p).values for p in ("auto", "float32", "bf16")}
    assert torch.equal(features["auto"], features["float32"])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert torch.equal(extract(vit(), coloured(9), "mean").values, features["bf16"])


@dataclass(frozen=True)
class Counting:
    """A source in memory that counts what is read of it, of which two images are broken."""

    whole: object = field(default_factory=lambda: coloured(21))
    read: list[int] = field(default_factory=list)
    channels = 3
    address = "counting"

    def __len__(self):
        return len(self.whole)

    @property
    def labels(self):
        return self.whole.labels

    @property
    def classes(self):
        return self.whole.classes

    def name(self, index):
        return self.whole.name(index)

    def image(self, index):
        self.read.append(index)
        if index in (2, 20):
            raise Unreadable(self.name(index), "it is broken")
        return self.whole.image(index)


def test_images_are_read_once_for_all_encoders():
    source, views = Counting(), KeptViews()
    first, second = (extract(vit(depth), source, "mean", batch_size=4, views=views) for depth in (1, 2))
    assert sorted(source.read) == list(range(21))
    for depth, kept in ((1, first), (2, second)):
        alone = extract(vit(depth), Counting(), "mean", batch_size=4)
        assert torch.equal(kept.values, alone.values)
        assert (kept.names, kept.unreadable) == (alone.names, ("image 2", "image 20"))


@pytest.mark.parametrize("other", ["source", "size", "batch"])
def test_views_made_otherwise_are_not_taken(other):
    source, views = Counting(), KeptViews()
    extract(Patches(), source, "mean", batch_size=4, views=views)
    loaded = Counting(read=source.read) if other == "source" else source
    view = CenterView((4, 4) if other == "size" else SIDE)
    loader = Loader(loaded, view, 5 if other == "batch" else 4, max_broken=None, cache_bytes=0)
    shapes = [tuple(batch.maps["rgb"].shape[1:]) for batch, _ in views.in_order(loader)]
    assert len(source.read) == 2 * 21
    assert set(shapes) == {(3, *view.image_size)}


def test_a_pass_that_memory_does_not_hold_is_read_again():
    source, views = Counting(), KeptViews(most_bytes=3 * 8 * 8 * 18)
    for _ in range(2):
        extract(Patches(), source, "mean", batch_size=4, views=views)
    assert len(source.read) == 2 * 21
    small = KeptViews(most_bytes=3 * 8 * 8 * 19)
    for _ in range(2):
        extract(Patches(), source, "mean", batch_size=4, views=small)
    assert len(source.read) == 3 * 21


def test_progress_counts_training_and_test_images_together():
    told = []
    split = ImageSplit.of(coloured(15), coloured(9, seed=1))
    context = Context(micro_batch=5, progress=lambda *p: told.append(p))
    split.features(Patches(), context)
    assert told == [(f"features of {THIS_RUN}", done, 24) for done in (5, 10, 15, 20, 24)]


def test_a_result_says_where_it_was_measured_in_bf16():
    split = ImageSplit.of(coloured(15), coloured(9, seed=1))
    settings = {
        p: run_protocols({"knn": Knn()}, {THIS_RUN: vit()}, split, Context(precision=p))[0].settings
        for p in ("float32", "bf16")
    }
    assert settings["bf16"] == {**settings["float32"], "precision": "bf16"}


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """A stored run of a tiny ViT, and 40 images of it."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    shutil.copytree(Path(__file__).parent / "old_runs" / "mae", tmp_path / "mae")
    return tmp_path / "mae", str(write_images(tmp_path / "images"))


def test_evaluate_takes_a_precision_and_threads(old_run, monkeypatch, capsys):
    run, data = old_run
    options = {"data": data, "protocol": ("knn",), "baselines": False}
    with pytest.raises(ValueError, match=r"--threads is a number of at least 1; got 0"):
        unveil.evaluate(str(run), **options, threads=0)
    before = torch.get_num_threads()
    unveil.evaluate(str(run), **options, precision="bf16", threads=before + 1)
    assert torch.get_num_threads() == before
    assert json.loads((run / "eval" / "knn.json").read_text())["settings"]["precision"] == "bf16"
    assert "compute in bf16" not in capsys.readouterr().err
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    unveil.evaluate(str(run), **options)
    assert "compute in bf16; --precision float32" in capsys.readouterr().err


def test_shards_are_evaluated_and_embedded_as_the_folder_that_was_packed(old_run, tmp_path, monkeypatch):
    """Their scores, features and labels to the bit, and the names without their ending."""
    monkeypatch.chdir(tmp_path)
    run, data = old_run
    unveil.pack(data, out="shards", lossless=True, short_side=None)
    scores, arrays = [], []
    for address in (data, "shards"):
        (result,) = unveil.evaluate(str(run), data=address, protocol=("knn",), precision="float32")
        scores.append((result.metrics, result.baselines))
        arrays.append(dict(np.load(unveil.embed(str(run), data=address))))
    assert scores[0] == scores[1]
    folder, shards = arrays
    assert [name.removesuffix(".png") for name in folder["names"]] == shards["names"].tolist()
    for name in ("features", "labels"):
        assert np.array_equal(folder[name], shards[name])


@pytest.mark.parametrize("what", ["features", "training"])
def test_the_number_of_threads_follows_the_load_where_it_is_not_fixed(what, monkeypatch):
    tried = []
    monkeypatch.setattr(threads, "TRIAL_SECONDS", 0.0)

    def compute(most: int) -> None:
        if what == "features":
            extract(Patches(), coloured(36), "mean", batch_size=2, threads=most)
        else:
            data = ImageSplit.of(coloured(24), coloured(9, seed=1))
            settings = FineTuning(epochs=4, batch_size=8, randaugment=0, mixup=0, cutmix=0)
            FineTuner(vit(1), data, settings, "mean", Context(threads=most)).train()

    main = threading.current_thread()
    monkeypatch.setattr(torch, "set_num_threads", lambda n: main is threading.current_thread() and tried.append(n))
    compute(0)
    assert tried == []
    compute(2)
    assert tried


class Compiler:
    """Stands for the compiler: functions are traced, and what a pass takes is told by the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float, others: float = 0.1):
        self.compile, self.seconds, self.calls, self.notes = torch.compile, seconds, list[int](), list[str]()
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", self)
        monkeypatch.setattr(encoding, "COMPILE_FROM", 0.0)
        monkeypatch.setattr(encoding, "processor_use", lambda: others)
        monkeypatch.setattr(image_encoder, "CACHED_TOKENS", 5 * 16)  # five images at once
        timed = encoding.Encoding._timed

        def told(own, forward, batch):
            return timed(own, forward, batch)[0], self.seconds if forward == own._compiled else 1.0

        monkeypatch.setattr(encoding.Encoding, "_timed", told)

    def __call__(self, function, **options):
        graph = self.compile(function, **{**options, "backend": "eager"})

        def counted(batch):
            self.calls.append(len(batch))
            return graph(batch)

        return counted

    def features(self, precision="bf16", threads=0, encoder=None):
        images, encoder = coloured(36), encoder or vit()
        return extract(encoder, images, "mean", 12, precision=precision, threads=threads, note=self.notes.append).values


def test_the_encoder_is_compiled_where_that_is_faster(monkeypatch):
    """In graphs of one size: batches of 12 images are computed as 5, 5 and 5, of which three are no images."""
    plain = extract(vit(), coloured(36), "mean", 12, precision="bf16").values
    compiler = Compiler(monkeypatch, seconds=0.5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        features = compiler.features()
    assert (features - plain).norm() < 0.02 * (plain - plain.mean(0)).norm()
    assert len(compiler.calls) == 3 * 3 + 3  # three times to try, and the third batch
    assert set(compiler.calls) == {5}
    assert compiler.notes[-1] == "the compiled encoder takes 50% of the time"
    several = ImageEncoder(Encoder((RGB, DEPTH), SIDE, 2, 64, 1, 4))
    assert compiler.features(encoder=several).isfinite().all()


@pytest.mark.parametrize(
    ("seconds", "others", "words", "tried"),
    [
        (0.97, 0.1, {}, True),  # no faster
        (0.5, 0.7, {}, False),  # other programs keep the cores busy
        (0.5, 0.1, {"precision": "float32"}, False),  # the same to the bit
        (0.5, 0.1, {"threads": 99}, False),  # fewer compute now
    ],
)
def test_the_encoder_is_not_compiled_where_that_does_not_pay(seconds, others, words, tried, monkeypatch):
    compiler = Compiler(monkeypatch, seconds, others)
    compiler.features(**words)
    assert len(compiler.calls) == (9 if tried else 0)
    assert not any("of the time" in note for note in compiler.notes)


def test_a_compiler_that_fails_costs_a_line(monkeypatch):
    def fail(function, **options):
        raise RuntimeError("no C++ compiler\nat line 3")

    compiler = Compiler(monkeypatch, seconds=0.5)
    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    features = compiler.features()
    monkeypatch.setattr(encoding, "COMPILE_FROM", math.inf)
    assert torch.equal(features, compiler.features())
    assert "torch.compile does not work here (no C++ compiler); features are computed" in compiler.notes[-1]
