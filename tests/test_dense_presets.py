"""MAE's published segmentation (mmsegmentation, UPerNet on ADE20K), each part against a computation of its own."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from measuring import on_dense
from test_segment import LABELS, tiny
from unveil.cli.flags import flags_of, parse
from unveil.commands.evaluate import evaluate
from unveil.data.dense_layouts import open_dense
from unveil.data.transforms import Sample
from unveil.evaluation.dense.data import DenseView, distorted, starts
from unveil.evaluation.dense.heads import UPerHead, taps
from unveil.evaluation.dense.presets import DensePreset
from unveil.evaluation.dense.training import DenseTarget, DenseTrainer
from unveil.evaluation.protocols.depth import PRESETS as OF_DEPTH
from unveil.evaluation.protocols.depth import Depth
from unveil.evaluation.protocols.segment import PRESETS, Segment, classes_loss
from unveil.evaluation.registry import choose
from unveil.evaluation.types import Context
from unveil.modeling.rng import SampleRng, sample_keys
from unveil.modeling.types import RGB, Batch, Modality

ADE20K = 20_210  # training images
PICTURE = Modality("rgb", 3, (0.0,) * 3, (1.0,) * 3)


def published() -> DensePreset:
    return Segment(preset="mae").chosen(PRESETS, ADE20K)


def test_the_preset_has_the_published_numbers():
    preset = published()
    assert (preset.head, preset.frozen, preset.name) == ("upernet", False, "mae")
    assert preset.training.facts == {
        "epochs": 127,  # of 1263 updates; the last one ends after 862
        "batch_size": 16,
        "lr": 1e-4,
        "warmup_epochs": 1500 / 1263,
        "weight_decay": 0.05,
        "layer_decay": 0.65,
        "drop_path": 0.1,
        "image_size": 512,
        "scales": (0.5, 2.0),
        "fit": "bounded",
        "jitter": 0.0,
        "updates": 160_000,
        "warmup_updates": 1500,
        "class_share": 0.75,
        "distortion": 0.5,
        "blocks": (4, 6, 8, 12),
        "dropout": 0.1,
    }
    assert list(taps("upernet", 12, preset.training.blocks)) == [4, 6, 8, 12]
    assert list(taps("upernet", 24, preset.training.blocks)) == [8, 12, 16, 24]
    head = UPerHead(768, 768, 150)
    assert head.predict.weight.shape == (150, 768, 1, 1)
    assert [pooled[0].weight.shape for pooled in head.pooled] == [(768, 768, 1, 1)] * 4
    assert [layer.weight.shape for layer in (head.auxiliary[0][0], head.auxiliary[1])] == [
        (256, 768, 3, 3),
        (150, 256, 1, 1),
    ]
    assert head.regions[0].weight.shape == (768, 5 * 768, 3, 3)


def test_the_rate_rises_in_a_line_and_falls_in_a_line():
    training, steps = published().training, ADE20K // 16
    expected = np.empty(160_000)
    expected[0] = 1e-4 * 1e-6
    for k in range(1, 1500):
        expected[k] = expected[k - 1] + 1e-4 * (1 - 1e-6) / 1499
    for k in range(1500, 160_000):
        expected[k] = 1e-4 if k == 1500 else expected[k - 1] - 1e-4 / 158_499
    rates = [training.rate(k // steps + k % steps / steps, steps) for k in range(0, 160_000, 7)]
    np.testing.assert_allclose(rates, expected[::7], rtol=1e-6, atol=1e-12)
    assert training.rate(*(159_999 / steps, steps)) == 0


def test_a_training_ends_after_its_updates_at_the_rates_of_its_layers(red_bars: Path):
    preset = replace(published(), training=replace(published().training, image_size=16, batch_size=4, epochs=3))
    preset = replace(preset, training=replace(preset.training, updates=5, warmup_updates=2))
    encoder = tiny(depth=12)
    target = DenseTarget(LABELS, 2, classes_loss)
    trainer = DenseTrainer(encoder, open_dense(str(red_bars)), [RGB], target, preset, Context(micro_batch=2))
    rates, step = [], trainer.optimizer.step

    def recorded() -> None:
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        step()

    with patch.object(trainer.optimizer, "step", recorded):
        trainer.train()
    assert len(rates) == 5, "of the 6 of three epochs"
    for lrs, share in zip(rates, (1e-6, 1, 1, 0.5, 0), strict=True):
        assert max(lrs) == pytest.approx(1e-4 * share)
        assert min(lrs) == pytest.approx(1e-4 * share * 0.65**13), "the first layer's"
    of_layer = {id(p): group for group in trainer.groups for p in group["params"]}
    for k, block in enumerate(trainer.model.encoder.encoder.blocks, start=1):
        for p in block.parameters():
            assert of_layer[id(p)]["scale"] == pytest.approx(0.65 ** (13 - k))
            assert of_layer[id(p)]["weight_decay"] == (0.05 if p.ndim > 1 else 0)
    assert all(of_layer[id(p)]["scale"] == 1 for p in trainer.model.head.parameters())


def test_fewer_epochs_keep_the_share_of_the_warm_up():
    short = Segment(preset="mae", epochs=10, batch_size=8).chosen(PRESETS, 800).training
    assert (short.updates, short.warmup_updates, short.epochs) == (1000, 9, 10)
    few = Segment(preset="mae").chosen(PRESETS, 10).training
    assert (few.batch_size, few.updates, few.epochs) == (10, 160_000, 160_000)


def test_dropout_leaves_whole_channels_out_while_the_head_learns():
    torch.manual_seed(0)
    head = UPerHead(8, 200, 3).eval()
    maps, keys = [torch.randn(6, 8, 4, 4) for _ in range(4)], sample_keys(0, 0, range(6))
    batch = Batch({}, keys, torch.zeros(()))
    inputs: list[torch.Tensor] = []
    for layer in (head.predict, head.auxiliary[1]):
        layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    head(maps, (16, 16))
    head.learned_from(maps, (16, 16), 0.0, batch.rng)
    head.learned_from(maps, (16, 16), 0.1, batch.rng)
    plain, without, plain_aside, dropped, dropped_aside = inputs
    assert torch.equal(plain, without)
    for whole, partial in ((plain, dropped), (plain_aside, dropped_aside)):
        ratio = (partial / whole).nan_to_num(math.inf)
        left_out = (partial == 0).all((2, 3)) & ~(whole == 0).all((2, 3))
        assert 0.06 < left_out.float().mean() < 0.14
        torch.testing.assert_close(partial[~left_out], whole[~left_out] / 0.9)
        assert not torch.equal(left_out[0], left_out[1]), "drawn for each sample"
        assert ratio.shape == whole.shape


def test_colours_are_distorted_as_a_loop_over_pixels_does_it():
    torch.manual_seed(0)
    images = torch.rand(24, 3, 2, 3)
    images[0] = 0.5  # grey has no hue
    batch = Batch({"rgb": images}, sample_keys(3, 1, range(24)), torch.zeros(()))
    result = distorted(batch, 0.5).maps["rgb"]
    draws = batch.rng.uniform("photometric distortion", 9).tolist()
    changes = set()
    for image, ours, (b, c, s, h, early, *strengths) in zip(images, result, draws, strict=True):
        shift = (64 * strengths[0] - 32) / 255 if b < 0.5 else 0
        factor = 0.5 + strengths[1] if c < 0.5 else 1
        scale = 0.5 + strengths[2] if s < 0.5 else 1
        half_degrees = math.floor(-18 + 36 * strengths[3]) if h < 0.5 else 0
        changes.add((b < 0.5, c < 0.5, s < 0.5, h < 0.5, early < 0.5))
        assert -18 <= half_degrees < 18
        for row in range(2):
            for column in range(3):
                pixel = [min(1, max(0, value + shift)) for value in image[:, row, column].tolist()]
                if early < 0.5:
                    pixel = [min(1, value * factor) for value in pixel]
                hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
                pixel = list(colorsys.hsv_to_rgb((hue + half_degrees / 180) % 1, min(1, saturation * scale), value))
                if early >= 0.5:
                    pixel = [min(1, value * factor) for value in pixel]
                assert ours[:, row, column].tolist() == pytest.approx(pixel, abs=1e-5)
    assert len(changes) > 10, "each change by itself"
    assert distorted(batch, None) is batch
    grey = Batch({"rgb": images[:, :1]}, batch.key, batch.progress)
    assert distorted(grey, 0.5).maps["rgb"].shape == (24, 1, 2, 3)


def test_padding_is_not_distorted():
    valid = torch.ones(8, 1, 4, 4, dtype=torch.bool)
    valid[:, :, 2:] = False
    images = torch.rand(8, 3, 4, 4)
    batch = Batch({"rgb": images}, sample_keys(0, 0, range(8)), torch.zeros(()), {"rgb": valid})
    result = distorted(batch, 1.0).maps["rgb"]
    assert torch.equal(result[:, :, 2:], images[:, :, 2:])
    assert not torch.equal(result[:, :, :2], images[:, :, :2])


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(480, 640, 512 / 480), (640, 480, 512 / 480), (512, 2048, 1), (400, 3000, 2048 / 3000), (100, 90, 512 / 90)],
)
def test_images_are_as_large_as_2048_by_512_allow(height: int, width: int, scale: float):
    assert min(2048 / max(height, width), 512 / min(height, width)) == scale
    view = DenseView((512, 512), fit="bounded")
    assert view.base(height, width) == pytest.approx(scale)
    _, made = view.whole(Sample({"rgb": torch.zeros(3, height, width, dtype=torch.uint8)}), [RGB])
    assert made == (int(height * scale + 0.5), int(width * scale + 0.5))


def test_no_class_fills_more_than_its_share_of_a_view():
    ids = torch.zeros(1, 64, 64, dtype=torch.long)
    ids[:, :, 40:] = 1
    known = torch.ones(1, 64, 64, dtype=torch.bool)
    known[:, 32:, :8] = False
    sample = Sample({"rgb": torch.zeros(3, 64, 64, dtype=torch.uint8), "semseg": ids}, {"semseg": known})
    keys = sample_keys(0, 0, range(300))
    view = DenseView((32, 32), (2.0, 2.0), class_share=0.75)  # boxes of 32 x 32 pixels as they are
    first, more = (SampleRng(keys).uniform(*of).tolist() for of in (("dense view", 4), ("dense view crops", 20)))
    tried = []
    for (_, down, right, mirror), others in zip(first, more, strict=True):
        places = [(down, right), *zip(others[::2], others[1::2], strict=True)]
        for k, (y, x) in enumerate(places):
            rows, columns = (slice(int(33 * z), int(33 * z) + 32) for z in (y, x))
            counts = ids[0, rows, columns][known[0, rows, columns]].bincount(minlength=2)
            if k == 10 or counts.max() / counts.sum() < 0.75:
                break
        tried.append((k, ids[0, rows, columns].flip(1) if mirror < 0.5 else ids[0, rows, columns]))
    views = view([sample] * 300, [PICTURE, LABELS], keys)
    for (_, expected), ours in zip(tried, views, strict=True):
        there = ours.valid["semseg"]
        assert there is not None
        assert torch.equal(ours.maps["semseg"], torch.where(there, expected[None], 0))
    assert {k for k, _ in tried} >= {0, 1, 2, 3, 10}
    alone = replace(sample, maps={**sample.maps, "semseg": torch.zeros_like(ids)})
    assert len(DenseView((32, 32), class_share=0.75)([alone] * 4, [PICTURE, LABELS], keys[:4])) == 4


@pytest.mark.parametrize("length", [512, 513, 683, 853, 854, 1024, 2048])
def test_windows_are_341_apart(length: int):
    count = max(length - 512 + 341 - 1, 0) // 341 + 1
    ends = [min(341 * k + 512, length) for k in range(count)]
    assert starts(length, 512) == [max(end - 512, 0) for end in ends]


def test_the_preset_is_a_flag_and_its_head_and_its_training_follow(red_bars: Path):
    words = ["--protocol", "segment", "--preset", "mae", "--data", "x"]
    _, given = parse(words, [*flags_of(evaluate, skip=["run"]), *flags_of(Segment)])
    assert given["preset"] == "mae"
    few = {"epochs": 1, "batch_size": 4, "image_size": 16}
    (result,) = on_dense(tiny(depth=12), ["segment"], str(red_bars), options={"preset": "mae", **few})
    assert (result.settings["head"], result.settings["frozen"], result.settings["updates"]) == ("upernet", False, 2)
    assert "of blocks 4, 6, 8, 12" in result.card
    assert "a line to 0 after 2 updates" in result.card
    (older,) = on_dense(tiny(depth=12), ["segment"], str(red_bars), options={"schedule": "mae", **few})
    assert older.metrics == result.metrics
    with pytest.raises(ValueError, match=r"no preset 'mae' and --schedule small"):
        Segment(preset="mae", schedule="small").chosen(PRESETS, 10)
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"lr": -1.0}, {"image_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is at least"):
            choose(["segment"], {"preset": "mae", **wrong})
    with pytest.raises(ValueError, match="preset of depth is one of auto, probe, small, multimae-nyuv2"):
        choose(["depth"], {"preset": "mae"})
    with pytest.raises(ValueError, match="preset of segment is one of auto, probe"):
        choose(["segment"], {"preset": "mae-b"})


def test_presets_carry_their_head_and_train_the_encoder_unless_told_otherwise():
    for name, head in (("mae", "upernet"), ("mae-ade20k", "upernet"), ("multimae-nyuv2", "convnext")):
        preset = Segment(preset=name).chosen(PRESETS, 100)
        assert (preset.head, preset.frozen) == (head, False)
    assert Depth(preset="multimae-nyuv2").chosen(OF_DEPTH, 100).head == "dpt"
    own = Segment(preset="mae", head="linear", frozen=True, lr=1.0).chosen(PRESETS, 100)
    assert (own.head, own.frozen, own.training.lr) == ("linear", True, 1.0)
    assert [Segment(frozen=frozen).chosen(PRESETS, 100).name for frozen in (None, True, False)] == [
        "probe",
        "probe",
        "small",
    ]
    older = Segment(preset="mae-ade20k").chosen(PRESETS, ADE20K).training
    assert (older.lr, older.layer_decay, older.blocks, older.updates) == (8e-5, 0.8, None, None)
