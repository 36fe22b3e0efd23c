"""Segmentation: heads, views, windows and measures against computations of their own; toys that are learned."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from measuring import on_dense
from unveil.data.dense_layouts import open_dense
from unveil.data.loader import Loader
from unveil.data.transforms import Sample
from unveil.evaluation.dense.data import DenseData, DenseView, jittered, places, starts
from unveil.evaluation.dense.heads import HEADS, ConvNeXtHead, taps
from unveil.evaluation.dense.metrics import Confusion
from unveil.evaluation.dense.model import DenseModel, chosen_inputs
from unveil.evaluation.dense.training import DenseTarget, DenseTrainer, DenseTraining, fitted
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
from unveil.modeling.rng import SampleRng, sample_keys
from unveil.modeling.types import DEPTH, RGB, Batch, Modality
from unveil.reporting.page import write_report

LABELS = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=2)


def tiny(*modalities: Modality, depth: int = 2, seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(Encoder(modalities or (RGB,), (16,), 4, dim=16, depth=depth, heads=2))


@pytest.fixture(scope="module")
def red_bars(tmp_path_factory) -> Path:
    """Blue images with a red bar: the bar is class 1, the first rows are void, and the bar is twice as deep."""
    root, rng = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for i in range(count):
            ids = np.zeros((16, 24), np.uint8)
            left = rng.integers(0, 16)
            ids[:, left : left + 8] = 1
            pixels = np.where(ids[..., None] == 1, (200, 60, 60), (60, 60, 200)).astype(np.uint8)
            metres = (1000 + 1000 * ids.astype(np.uint16)).astype(np.uint16)
            ids[:2] = 255
            for kind, array in (("rgb", pixels), ("semseg", ids), ("depth", metres)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / split / kind / f"{i}.png")
    return root


def chance_of(count: int) -> SampleRng:
    return SampleRng(sample_keys(0, 0, range(count)))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31), st.integers(1, 200))
def test_measures_are_those_of_sklearn(num_classes, seed, count):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, num_classes, (2, count))
    valid = rng.random(count) < 0.8
    valid[0] = True
    confusion = Confusion(num_classes)
    for part in np.array_split(np.arange(count), 3):  # batches add up
        confusion.add(*(torch.from_numpy(x[part]) for x in (guess, truth, valid)))
    theirs = metrics.confusion_matrix(truth[valid], guess[valid], labels=range(num_classes))
    assert confusion.counts.tolist() == theirs.tolist()
    present = sorted({*truth[valid], *guess[valid]})
    found = confusion.metrics()
    assert found["miou"] == pytest.approx(metrics.jaccard_score(truth[valid], guess[valid], average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth[valid], guess[valid]))
    each = metrics.jaccard_score(truth[valid], guess[valid], average=None, labels=present)
    assert confusion.iou[present].tolist() == pytest.approx(each.tolist())
    assert confusion.iou.isfinite().sum() == len(present), "a class that is nowhere has no IoU"


def test_nothing_judged_is_an_error():
    with pytest.raises(ValueError, match="no pixel of the test images has a class"):
        Confusion(3).metrics()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20))
def test_windows_cover_everything(length, window):
    length = max(length, window)
    found = starts(length, window)
    assert found[0] == 0
    assert found[-1] == length - window
    assert all(0 < b - a <= max(1, window * 2 // 3) for a, b in pairwise(found))
    assert places((length, window), (window, window)) == [(start, 0) for start in found]


def test_one_box_and_one_flip_for_all_maps():
    """The picture's own numbers are its labels: whatever the view, they have to stay so."""
    rng = np.random.default_rng(0)
    modalities = (Modality("rgb", 3, (0.0,) * 3, (1.0,) * 3), LABELS)
    for size in ((12, 16), (40, 24)):
        squares = np.kron(rng.integers(0, 2, (size[0] // 4, size[1] // 4)), np.ones((4, 4)))
        ids = torch.from_numpy(squares).long()[None]
        sample = Sample({"rgb": ids.expand(3, -1, -1).float(), "semseg": ids}, {"semseg": None})
        view = DenseView((16, 16), scales=(0.5, 2.0))
        drawn = view([sample] * 32, modalities, chance_of(32).key)
        again = view([sample] * 32, modalities, chance_of(32).key)
        padded = 0
        for one, other in zip(drawn, again, strict=True):
            assert one.maps["rgb"].shape == (3, 16, 16)
            assert torch.equal(one.maps["rgb"], other.maps["rgb"]), "a view is a pure function of its key"
            near = (one.maps["rgb"][:1] > 0.5) == (one.maps["semseg"] == 1)
            known = one.valid["semseg"]
            padded += known is not None and not bool(known.all())
            there = torch.ones_like(near) if known is None else known
            assert near[there].float().mean() > 0.85  # but for the edges, where the picture is smooth
            assert (one.maps["semseg"][~there] == 0).all()
        assert padded > 0, "some views are smaller than the window"
    assert len({d.maps["rgb"].sum().item() for d in drawn}) > 20


def test_half_of_the_views_are_mirrored():
    image = torch.arange(64, dtype=torch.float32).view(1, 8, 8) / 64
    plain = [Modality("rgb", 1, (0.0,), (1.0,))]
    views = DenseView((8, 8), scales=(1.0, 1.0))([Sample({"rgb": image})] * 64, plain, chance_of(64).key)
    mirrored = [torch.equal(v.maps["rgb"], image.flip(2)) for v in views]
    assert all(is_turned or torch.equal(v.maps["rgb"], image) for v, is_turned in zip(views, mirrored, strict=True))
    assert 20 < sum(mirrored) < 44


def test_padding_of_pictures_is_their_mean():
    sample = Sample({"rgb": torch.zeros(3, 8, 4, dtype=torch.uint8)})
    view, made = DenseView((8, 8), fit="inside").whole(sample, [RGB])
    assert made == (8, 4)
    assert view.maps["rgb"][:, :, 4:].float().mean((1, 2)).tolist() == pytest.approx([124, 116, 104])
    assert not view.valid["rgb"][:, :, 4:].any()
    assert view.valid["rgb"][:, :, :4].all()


def test_colours_change_by_chance_and_only_where_there_is_a_picture():
    images, valid = torch.rand(16, 3, 8, 8), torch.ones(16, 1, 8, 8, dtype=torch.bool)
    valid[:, :, 4:] = False
    batch = Batch({"rgb": images}, sample_keys(0, 0, range(16)), torch.zeros(()), {"rgb": valid})
    found = jittered(batch, 0.5).maps["rgb"]
    assert torch.equal(found[:, :, 4:], images[:, :, 4:])
    assert 2 <= (found[:, :, :4] != images[:, :, :4]).flatten(1).any(1).sum() <= 14
    assert jittered(batch, 0.0) is batch


@pytest.mark.parametrize("head", HEADS)
def test_heads_answer_at_any_size_and_learn_from_every_parameter(head):
    encoder = tiny(RGB, DEPTH, depth=4)
    model = DenseModel(encoder, encoder.modalities, head, outputs=3, frozen=False, seed=0).train()
    maps = {"rgb": torch.rand(2, 3, 16, 24), "depth": torch.rand(2, 1, 16, 24)}
    batch = Batch(maps, sample_keys(0, 0, range(2)), torch.zeros(()))
    found = model(batch)
    assert found.shape == (2, 3, 16, 24)
    sum(guess.square().sum() for _, guess in model.predictions(batch)).backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused <= {"encoder.encoder.norm.weight", "encoder.encoder.norm.bias"}, "maps are read before the final norm"
    assert not any(p.requires_grad for p in encoder.parameters()), "the encoder that was given stays as it is"
    twin = DenseModel(encoder, encoder.modalities, head, outputs=3, frozen=False, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.head.parameters(), twin.head.parameters(), strict=True))


def test_upernet_trains_on_a_micro_batch_of_one_small_image(red_bars):
    """The map pooled to one cell has one value per channel, which has no variance in a batch of one image."""
    settings = DenseTraining(1, 3, image_size=16, drop_path=0.0, jitter=0.0, scales=(1.0, 1.0))
    labels, pair = DenseTarget(LABELS, 2, classes_loss), open_dense(str(red_bars))
    trainer = DenseTrainer(tiny(depth=4), pair, [RGB], labels, "upernet", True, settings, Context(micro_batch=2))
    losses = list(trainer.losses(next(trainer._loader(pair.train).batches(0))))
    assert len(losses) == 2, "two images, then the third alone"
    assert all(loss.isfinite() for loss in losses)
    torch.stack(losses).sum().backward()
    pooled = trainer.model.head.pooled[0]
    assert pooled[0].weight.grad.isfinite().all()
    assert pooled[1].num_batches_tracked == 1, "the single image leaves the statistics as they are"


def test_upernet_learns_with_an_auxiliary_head_too(red_bars):
    """A convolution and a classifier on the third map, whose loss counts 0.4, as in MAE's setting for ADE20K."""
    pair = open_dense(str(red_bars))
    settings = DenseTraining(1, 4, image_size=16, drop_path=0.0, jitter=0.0, scales=(1.0, 1.0))
    labels = DenseTarget(LABELS, 2, classes_loss)
    trainer = DenseTrainer(tiny(depth=4), pair, [RGB], labels, "upernet", True, settings, Context(micro_batch=16))
    batch = next(trainer._loader(pair.train).batches(0))
    twin = copy.deepcopy(trainer.model)
    third = twin.encoder.tokens(Batch({"rgb": batch.maps["rgb"] / 255}, batch.key, batch.progress), [3])[0][:, 1:]
    grid = third.mT.unflatten(-1, (4, 4))
    conv, norm = twin.head.auxiliary[0][:2]
    grid = F.conv2d(grid, conv.weight, padding=1)
    grid = (grid - grid.mean((0, 2, 3), keepdim=True)) / (grid.var((0, 2, 3), False, keepdim=True) + norm.eps).sqrt()
    said = F.interpolate(twin.head.auxiliary[1](grid.relu()), (16, 16), mode="bilinear")
    valid = batch.valid["semseg"][:, 0]
    truth = batch.maps["semseg"][:, 0]

    def error(guess):
        return F.cross_entropy(guess.permute(0, 2, 3, 1)[valid], truth[valid])

    whole = replace(batch, maps={**batch.maps, "rgb": batch.maps["rgb"] / 255})
    expected = error(twin(whole)) + 0.4 * error(said)
    assert sum(trainer.losses(batch)).item() == pytest.approx(expected.item(), rel=1e-4)
    assert len(DenseModel(tiny(), [RGB], "dpt", 2, True, 0).predictions(whole)) == 1, "other heads have none"


def test_a_frozen_encoder_neither_learns_nor_drops():
    model = DenseModel(tiny(), (RGB,), "linear", outputs=2, frozen=True, seed=0).train()
    assert not model.encoder.training
    assert model.head.training
    batch = Batch({"rgb": torch.rand(1, 3, 16, 16)}, sample_keys(0, 0, [0]), torch.zeros(()))
    model(batch).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_tokens_lie_where_their_patches_are():
    """A head that passes tokens on shows each modality's at its own place."""
    encoder = tiny(RGB, DEPTH)
    model = DenseModel(encoder, (RGB, DEPTH), "linear", outputs=2, frozen=True, seed=0)
    batch = Batch(
        {
            "rgb": torch.rand(1, 3, 16, 24),
            "depth": torch.rand(1, 1, 16, 24),
            "semseg": torch.zeros(1, 1, 16, 24).long(),
        },
        sample_keys(0, 0, [0]),
        torch.zeros(()),
    )
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda head, given: seen.extend(given[0]))
    model(batch)
    (tokens,) = encoder.tokens(batch, [2])
    assert torch.equal(seen[0][0, :16, 1, 2], tokens[0, 1 + 1 * 6 + 2])
    assert torch.equal(seen[0][0, 16:, 1, 2], tokens[0, 1 + 24 + 1 * 6 + 2])


def test_multimaes_head_has_its_published_widths():
    head = ConvNeXtHead(768, 768, 150)
    assert head.project.weight.shape == (6144, 768)
    assert head.predict.weight.shape == (150, 384, 1, 1)
    assert ConvNeXtHead(768, 768, 1, spread=64).predict.in_channels == 96
    assert list(taps("upernet", 12)) == [3, 6, 9, 12]
    assert list(taps("linear", 12)) == [12]


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
    dials = {"frozen": frozen, "epochs": 12 if frozen else 4, "batch_size": 4, "lr": 2e-2 if frozen else 3e-3}
    (result,) = on_dense(tiny(), ["segment"], str(red_bars), options=dials, baselines={"untrained": tiny(seed=1)})
    (again,) = on_dense(tiny(), ["segment"], str(red_bars), options=dials)
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
    dials = {"inputs": ("depth", "rgb"), "epochs": 3, "batch_size": 4}
    (result,) = on_dense(encoder, ["segment"], str(red_bars), options=dials)
    assert result.settings["inputs"] == ["rgb", "depth"]
    (alone,) = on_dense(encoder, ["segment"], str(red_bars), options={**dials, "inputs": ("depth",)})
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
    dials = {"inputs": ("rgb", "semseg"), "epochs": 2, "batch_size": 4}
    (result,) = on_dense(tiny(RGB, coarse), ["depth"], str(red_bars), options=dials)
    assert result.settings["inputs"] == ["rgb", "semseg"]
    assert np.isfinite(list(result.metrics.values())).all()


@pytest.mark.parametrize("num_prefix", [0, 5])
def test_public_vits_are_measured_too(red_bars, num_prefix):
    config = ViTConfig(width=16, depth=4, heads=2, patch=4, hidden=32, grid=(4, 4), num_prefix=num_prefix)
    dials = {"head": "upernet", "frozen": False, "epochs": 1, "batch_size": 4, "image_size": 24}
    (result,) = on_dense(untrained_vit(config, seed=0), ["segment"], str(red_bars), options=dials)
    assert result.settings["image_size"] == [24, 24], "another size than it was trained at"
    assert result.settings["layer_decay"] == 0.75
    with pytest.raises(ValueError, match=r"patch|divide"):
        on_dense(untrained_vit(config, seed=0), ["segment"], str(red_bars), options={**dials, "image_size": 18})


def test_windows_agree_with_one_pass_where_one_is_enough(red_bars):
    """A sample of the window's size goes through whole: the answer is the model's own."""
    pair = open_dense(str(red_bars))
    training = DenseTraining(1, 4, image_size=16, jitter=0.0)
    labels = DenseTarget(LABELS, 2, classes_loss)
    trainer = DenseTrainer(tiny(), pair, [RGB], labels, "linear", True, training, Context(micro_batch=16))
    trainer.model.eval()
    sample = pair.test.select([RGB.name, LABELS.name]).sample(0)
    square = Sample({name: m[:, :, :16] for name, m in sample.maps.items()}, {"semseg": None})
    (guess,) = trainer._predicted([square])
    images = square.maps["rgb"][None].float() / 255
    whole = trainer.model(Batch({"rgb": images}, torch.zeros(1, dtype=torch.int64), torch.ones(())))
    torch.testing.assert_close(guess, whole[0].detach(), rtol=0, atol=1e-5)
    (wide,) = trainer._predicted([sample])  # 16 x 24: two windows, at 0 and at 8
    left, right = (
        trainer.model(
            Batch({"rgb": sample.maps["rgb"][None, :, :, k : k + 16] / 255}, torch.zeros(1).long(), torch.ones(()))
        )[0].detach()
        for k in (0, 8)
    )
    torch.testing.assert_close(wide[:, :, :8], left[:, :, :8], rtol=0, atol=1e-5)
    torch.testing.assert_close(wide[:, :, 8:16], (left[:, :, 8:] + right[:, :, :8]) / 2, rtol=0, atol=1e-5)


def test_settings_fit_the_set():
    settings = DenseTraining(100, 16, warmup_epochs=10)
    few = fitted(settings, 8, 1000, {})
    assert (few.batch_size, few.epochs, few.warmup_epochs) == (8, 100, 10)
    many = fitted(settings, 3200, 1000, {"lr": 0.5})
    assert (many.epochs, many.warmup_epochs, many.lr) == (5, 0.5, 0.5)
    assert fitted(settings, 3200, 0, {"epochs": 7}).epochs == 7
    for wrong in ({"epochs": 0}, {"lr": -1.0}):
        with pytest.raises(ValueError, match="at least"):
            fitted(settings, 10, 0, wrong)


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


def test_a_batch_is_a_function_of_seed_epoch_and_sample(red_bars):
    train, view = open_dense(str(red_bars)).train.select(["rgb", "semseg"]), DenseView((16, 16))
    loader, of_three = (Loader(train, view, n, 0, max_broken=None, modality=[RGB, LABELS]) for n in (4, 3))
    one, other = (next(loader.batches(epoch)) for epoch in (0, 0))
    assert torch.equal(one.maps["rgb"], other.maps["rgb"])
    assert not torch.equal(one.maps["rgb"], next(loader.batches(1)).maps["rgb"])
    assert len(list(of_three.batches(0))) == of_three.steps_per_epoch == 2


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

    def kept(side: int, resize: ResizePositions) -> Path | None:
        torch.manual_seed(0)
        encoder = ImageEncoder(Encoder((RGB,), (16,), 4, dim=16, depth=2, heads=2, resize_positions=resize))
        context = Context(cache=cache)
        trainer = DenseTrainer(encoder, pair, [RGB], labels, "linear", True, DenseTraining(1, image_size=side), context)
        return trainer.checkpoint.file

    assert kept(16, "interpolate") == kept(16, "extrapolate")
    assert kept(24, "interpolate") != kept(24, "extrapolate")


@pytest.mark.parametrize("resize", ["interpolate", "extrapolate"])
def test_a_saved_encoder_resizes_its_positions_as_it_was_trained_to(tmp_path, resize):
    encoder = ImageEncoder(Encoder((RGB,), (16,), 4, dim=16, depth=2, heads=2, resize_positions=resize))
    encoder.save(tmp_path / "encoder.safetensors")
    images = torch.rand(2, 3, 24, 24)
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    torch.testing.assert_close(loaded(images), encoder(images))
    assert loaded.resize_positions == resize
