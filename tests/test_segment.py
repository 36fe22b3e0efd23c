"""Segmentation: heads, views, windows and measures against computations of their own; toys that are learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from measuring import on_dense
from unveil.data.dense_layouts import open_dense
from unveil.evaluation.dense.data import DenseData
from unveil.evaluation.dense.metrics import Confusion
from unveil.evaluation.dense.model import chosen_inputs
from unveil.evaluation.dense.presets import DensePreset, DenseTraining
from unveil.evaluation.dense.training import DenseTarget, DenseTrainer
from unveil.evaluation.features import RawPixels
from unveil.evaluation.protocols.segment import Segment, classes_loss
from unveil.evaluation.registry import data_for
from unveil.evaluation.results import Result, ResultCache, details_table, table, write_results
from unveil.evaluation.types import Context
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.layers import ResizePositions
from unveil.modeling.public_vits import load_encoder, untrained_vit
from unveil.modeling.public_vits.vit import ViTConfig
from unveil.modeling.types import DEPTH, RGB, Modality
from unveil.reporting.page import write_report

LABELS = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=2)


def tiny(*modalities: Modality, depth: int = 2, seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(Encoder(modalities or (RGB,), (16,), 4, dim=16, depth=depth, heads=2))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31), st.integers(1, 200))
def test_measures_are_those_of_sklearn(num_classes, seed, count):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, num_classes, (2, count))
    valid = rng.random(count) < 0.8
    valid[0] = True
    confusion = Confusion(num_classes)
    for rows in np.array_split(np.arange(count), 3):  # batches add up
        confusion.add(*(torch.from_numpy(x[rows]) for x in (guess, truth, valid)))
    theirs = metrics.confusion_matrix(truth[valid], guess[valid], labels=range(num_classes))
    assert confusion.counts.tolist() == theirs.tolist()
    present = sorted({*truth[valid], *guess[valid]})
    result = confusion.metrics()
    assert result["miou"] == pytest.approx(metrics.jaccard_score(truth[valid], guess[valid], average="macro"))
    assert result["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth[valid], guess[valid]))
    each = metrics.jaccard_score(truth[valid], guess[valid], average=None, labels=present)
    assert confusion.iou[present].tolist() == pytest.approx(each.tolist())
    assert confusion.iou.isfinite().sum() == len(present), "a class that is nowhere has no IoU"


def test_nothing_judged_is_an_error():
    with pytest.raises(ValueError, match="no pixel of the test images has a class"):
        Confusion(3).metrics()


def test_void_pixels_do_not_teach():
    guess, truth = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 1, 4, 4))
    valid = torch.rand(2, 1, 4, 4) < 0.5
    loss = classes_loss(guess, truth, valid)
    chosen = valid[:, 0]
    theirs = F.cross_entropy(guess.permute(0, 2, 3, 1)[chosen], truth[:, 0][chosen], reduction="sum")
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    loss.backward()
    assert (guess.grad.permute(0, 2, 3, 1)[~chosen] == 0).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_bars_are_found_and_the_same_call_gives_the_same_numbers(red_bars, frozen):
    options = {"frozen": frozen, "epochs": 12 if frozen else 4, "batch_size": 4, "lr": 2e-2 if frozen else 3e-3}
    (result,) = on_dense(tiny(), ["segment"], str(red_bars), options=options, baselines={"untrained": tiny(seed=1)})
    (again,) = on_dense(tiny(), ["segment"], str(red_bars), options=options)
    assert result.metrics == again.metrics
    assert result.metrics["miou"] > 0.6 > result.baselines["majority class (class 0)"]["miou"]
    assert ("from scratch" in result.baselines) == (not frozen)
    iou = result.details["iou"]
    assert set(iou) == {"class 0", "class 1"}
    assert result.metrics["miou"] == pytest.approx(sum(iou.values()) / 2)
    majority = result.baselines["majority class (class 0)"]
    assert majority["miou"] == pytest.approx(majority["pixel_accuracy"] / 2)
    assert majority["pixel_accuracy"] == pytest.approx(2 / 3)  # the bar is a third of every image
    assert "segment mIoU" in table([result])
    assert ("the encoder is frozen" in result.card) == frozen


def test_the_iou_of_each_class_is_told_and_on_the_page(tmp_path):
    iou = {f"kind {k}": k / 30 for k in range(30)}
    result = Result("segment", "bars", None, "tokens", {"miou": 0.5}, {}, {}, "card", 1.0, "2026", {"iou": iou})
    lines = details_table([result]).splitlines()
    assert lines[0] == "segment, IoU of each class"
    assert lines[1].split()[:3] == ["kind", "0", "0.0%"]
    assert lines[2].startswith("kind 1 ")
    assert 5 < len(lines) < 12
    assert max(map(len, lines)) <= 100
    assert sum("kind 29  96.7%" in line for line in lines) == 1
    assert details_table([]) == ""
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "mae"}))
    write_results(tmp_path, [result])
    page = write_report([tmp_path]).read_text()
    assert "IoU of each class" in page
    assert "kind 29" in page
    assert "96.7" in page


def test_depth_and_pictures_are_read_together(red_bars):
    encoder = tiny(RGB, DEPTH)
    options = {"inputs": ("depth", "rgb"), "epochs": 3, "batch_size": 4}
    (result,) = on_dense(encoder, ["segment"], str(red_bars), options=options)
    assert result.settings["inputs"] == ["rgb", "depth"]
    (alone,) = on_dense(encoder, ["segment"], str(red_bars), options={**options, "inputs": ("depth",)})
    assert alone.metrics != result.metrics
    there = ["rgb", "semseg"]
    with pytest.raises(ValueError, match="reads rgb, depth, not 'thermal'"):
        chosen_inputs(encoder, ["thermal"], there, "semseg")
    with pytest.raises(ValueError, match="semseg is what is to be predicted"):
        chosen_inputs(tiny(RGB, LABELS), ["semseg"], there, "semseg")
    with pytest.raises(ValueError, match="nothing but the target"):
        chosen_inputs(tiny(DEPTH), [], ["depth"], "depth")
    assert [m.name for m in chosen_inputs(encoder, [], ["depth", "semseg"], "semseg")] == ["depth"]


def test_maps_of_a_stride_are_read_too(red_bars):
    """MultiMAE's semantics have a pixel for each 4 x 4 of the picture."""
    coarse = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=2, stride=4)
    options = {"inputs": ("rgb", "semseg"), "epochs": 2, "batch_size": 4}
    (result,) = on_dense(tiny(RGB, coarse), ["depth"], str(red_bars), options=options)
    assert result.settings["inputs"] == ["rgb", "semseg"]
    assert np.isfinite(list(result.metrics.values())).all()


@pytest.mark.parametrize("num_prefix", [0, 5])
def test_public_vits_are_measured_too(red_bars, num_prefix):
    config = ViTConfig(width=16, depth=4, heads=2, patch=4, hidden=32, grid=(4, 4), num_prefix=num_prefix)
    options = {"head": "upernet", "frozen": False, "epochs": 1, "batch_size": 4, "image_size": 24}
    (result,) = on_dense(untrained_vit(config, seed=0), ["segment"], str(red_bars), options=options)
    assert result.settings["image_size"] == [24, 24], "another size than it was trained at"
    assert result.settings["layer_decay"] == 0.75
    with pytest.raises(ValueError, match=r"patch|divide"):
        on_dense(untrained_vit(config, seed=0), ["segment"], str(red_bars), options={**options, "image_size": 18})


def test_broken_files_are_left_out_and_named(red_bars, tmp_path):
    import shutil

    root = shutil.copytree(red_bars, tmp_path / "bars")
    (root / "train" / "rgb" / "3.png").write_bytes(b"not an image")
    (result,) = on_dense(tiny(), ["segment"], str(root), options={"epochs": 1})
    assert result.settings["unreadable_names"] == ["3"]
    for path in (root / "train" / "rgb").glob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 8 samples of .* can be read"):
        on_dense(tiny(), ["segment"], str(root), options={"epochs": 1})


def test_dense_protocols_stand_alone(red_bars):
    assert data_for(["segment", "depth"]) == "images with a label per pixel"
    assert data_for(["knn", "linear", "finetune"]) == "labelled images"
    assert data_for(["heldout"]) == "samples for a run's decoders"
    with pytest.raises(ValueError, match=r"segment, depth on images with .* and knn on labelled images: these"):
        data_for(["segment", "depth", "knn"])
    with pytest.raises(ValueError, match="reads the encoder's tokens"):
        on_dense(RawPixels(RGB, (16, 16)), ["segment"], str(red_bars))
    assert Segment().run(RawPixels(RGB, (16, 16)), DenseData(str(red_bars)), Context()) is None
    with pytest.raises(ValueError, match="head of segment is one of linear, convnext"):
        on_dense(tiny(), ["segment"], str(red_bars), options={"head": "mlp"})


def test_a_kept_training_at_another_size_tells_how_positions_are_resized(red_bars, tmp_path):
    """At the training's own size there is nothing to resize, and what was kept by earlier releases stays valid."""
    labels, pair, cache = DenseTarget(LABELS, 2, classes_loss), open_dense(str(red_bars)), ResultCache(tmp_path)

    def checkpoint_file(side: int, resize: ResizePositions) -> Path | None:
        torch.manual_seed(0)
        encoder = ImageEncoder(Encoder((RGB,), (16,), 4, dim=16, depth=2, heads=2, resize_positions=resize))
        preset = DensePreset(DenseTraining(1, image_size=side), frozen=True)
        trainer = DenseTrainer(encoder, pair, [RGB], labels, preset, Context(cache=cache))
        return trainer.checkpoint.file

    assert checkpoint_file(16, "interpolate") == checkpoint_file(16, "extrapolate")
    assert checkpoint_file(24, "interpolate") != checkpoint_file(24, "extrapolate")


@pytest.mark.parametrize("resize", ["interpolate", "extrapolate"])
def test_a_saved_encoder_resizes_its_positions_as_it_was_trained_to(tmp_path, resize):
    encoder = ImageEncoder(Encoder((RGB,), (16,), 4, dim=16, depth=2, heads=2, resize_positions=resize))
    encoder.save(tmp_path / "encoder.safetensors")
    images = torch.rand(2, 3, 24, 24)
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    torch.testing.assert_close(loaded(images), encoder(images))
    assert loaded.resize_positions == resize
