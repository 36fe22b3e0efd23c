"""Heads for every pixel and how they are trained, against computations of their own; the published presets."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from test_segment import LABELS, tiny
from unveil.data.dense_layouts import open_dense
from unveil.data.transforms import Sample
from unveil.evaluation.dense.heads import HEADS, ConvNeXtHead, taps
from unveil.evaluation.dense.model import DenseModel
from unveil.evaluation.dense.presets import DensePreset, DenseTraining, fitted
from unveil.evaluation.dense.training import DenseTarget, DenseTrainer
from unveil.evaluation.protocols.segment import classes_loss
from unveil.evaluation.types import Context
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import DEPTH, RGB, Batch


@pytest.mark.parametrize("head", HEADS)
def test_heads_answer_at_any_size_and_learn_from_every_parameter(head):
    encoder = tiny(RGB, DEPTH, depth=4)
    model = DenseModel(encoder, encoder.modalities, head, outputs=3, frozen=False, seed=0).train()
    maps = {"rgb": torch.rand(2, 3, 16, 24), "depth": torch.rand(2, 1, 16, 24)}
    batch = Batch(maps, sample_keys(0, 0, range(2)), torch.zeros(()))
    result = model(batch)
    assert result.shape == (2, 3, 16, 24)
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
    trainer = DenseTrainer(
        tiny(depth=4), pair, [RGB], labels, DensePreset(settings, "upernet", True), Context(micro_batch=2)
    )
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
    trainer = DenseTrainer(
        tiny(depth=4), pair, [RGB], labels, DensePreset(settings, "upernet", True), Context(micro_batch=16)
    )
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
    calls: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda head, given: calls.extend(given[0]))
    model(batch)
    (tokens,) = encoder.tokens(batch, [2])
    assert torch.equal(calls[0][0, :16, 1, 2], tokens[0, 1 + 1 * 6 + 2])
    assert torch.equal(calls[0][0, 16:, 1, 2], tokens[0, 1 + 24 + 1 * 6 + 2])


def test_multimaes_head_has_its_published_widths():
    head = ConvNeXtHead(768, 768, 150)
    assert head.project.weight.shape == (6144, 768)
    assert head.predict.weight.shape == (150, 384, 1, 1)
    assert ConvNeXtHead(768, 768, 1, spread=64).predict.in_channels == 96
    assert list(taps("upernet", 12)) == [3, 6, 9, 12]
    assert list(taps("linear", 12)) == [12]


def test_windows_agree_with_one_pass_where_one_is_enough(red_bars):
    """A sample of the window's size goes through whole: the answer is the model's own."""
    pair = open_dense(str(red_bars))
    training = DenseTraining(1, 4, image_size=16, jitter=0.0)
    labels = DenseTarget(LABELS, 2, classes_loss)
    trainer = DenseTrainer(tiny(), pair, [RGB], labels, DensePreset(training, frozen=True), Context(micro_batch=16))
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
