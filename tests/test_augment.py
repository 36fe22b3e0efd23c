"""Augmentations: colour and geometry as Pillow and torchvision have them, mixing and erasing by their definitions."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from unveil.data import augment
from unveil.data.augment import OPERATIONS, Mix, RandAugment, apply, erase, mix_images, soft_labels
from unveil.modeling.rng import SampleRng, sample_keys

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def photograph(seed: int = 0, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    """Smooth colours with some noise, in bytes."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 200, (5, 7, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(small).astype(int) + rng.integers(-6, 7, (*size, 3)), 0, 255).astype(np.uint8)


def batch(count: int = 2) -> torch.Tensor:
    return torch.stack([torch.from_numpy(photograph(i)).permute(2, 0, 1) for i in range(count)]).float() / 255


def same(value: float, count: int = 2) -> torch.Tensor:
    return torch.full((count,), float(value))


COLOUR = {
    "autocontrast": (augment.autocontrast, ImageOps.autocontrast),
    "equalize": (augment.equalize, ImageOps.equalize),
    "invert": (augment.invert, ImageOps.invert),
    "posterize": (lambda x: augment.posterize(x, same(3)), lambda image: ImageOps.posterize(image, 3)),
    "solarize": (lambda x: augment.solarize(x, same(100)), lambda image: ImageOps.solarize(image, 100)),
    "solarize_add": (
        lambda x: augment.solarize_add(x, same(40)),
        lambda image: image.point([min(255, i + 40) if i < 128 else i for i in range(256)] * 3),
    ),
    "saturation": (lambda x: augment.saturation(x, same(1.7)), lambda image: ImageEnhance.Color(image).enhance(1.7)),
    "contrast": (lambda x: augment.contrast(x, same(0.4)), lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
    "brightness": (
        lambda x: augment.brightness(x, same(1.5)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.5),
    ),
    "sharpness": (lambda x: augment.sharpness(x, same(1.9)), lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
}


@pytest.mark.parametrize("name", COLOUR)
def test_colours_change_as_in_pillow(name):
    ours, theirs = COLOUR[name]
    result = (ours(batch()) * 255).permute(0, 2, 3, 1).numpy()
    for i in range(2):
        wanted = np.asarray(theirs(Image.fromarray(photograph(i)))).astype(float)
        assert np.abs(result[i] - wanted).max() <= 1.5  # Pillow rounds grey, the smoothed image and the result
        assert np.abs(wanted - photograph(i)).max() > 5


AFFINE = {
    "rotation": (augment.rotation(same(20), (40, 56)), lambda x: x.rotate(20, Image.Resampling.BILINEAR)),
    "shear_x": (augment.shear_x(same(0.3)), (1, 0.3, 0, 0, 1, 0)),
    "shear_y": (augment.shear_y(same(-0.2)), (1, 0, 0, -0.2, 1, 0)),
    "shift": (augment.shift(same(9), same(-4)), (1, 0, 9, 0, 1, -4)),
}


@pytest.mark.parametrize("name", AFFINE)
def test_geometry_is_pillows(name):
    maps, theirs = AFFINE[name]
    result = (augment.warp(batch(), maps, (0.0, 0.0, 0.0)) * 255).permute(0, 2, 3, 1).numpy()
    for i in range(2):
        image = Image.fromarray(photograph(i))
        if isinstance(theirs, tuple):
            wanted = image.transform(image.size, Image.Transform.AFFINE, theirs, Image.Resampling.BILINEAR)
        else:
            wanted = theirs(image)
        off = np.abs(result[i] - np.asarray(wanted).astype(float)).max(2)
        assert np.median(off) < 1
        assert (off > 1.5).mean() < 0.06  # the edge of the image, which Pillow cuts and we blend with the fill


def test_what_comes_in_from_outside_has_the_fill():
    moved = augment.warp(batch(), augment.shift(same(100), same(0)), MEAN)
    torch.testing.assert_close(moved, torch.tensor(MEAN)[None, :, None, None].expand_as(moved))


@pytest.fixture(scope="module")
def functional():
    """torchvision's functions. Built for another torch it lacks its compiled operators; the two that its import reads
    are declared then, which is enough for all but detection."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return import_module("torchvision.transforms.v2.functional")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        operators = torch.library.Library("torchvision", "DEF")
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return import_module("torchvision.transforms.v2.functional")


def test_torchvision_agrees(functional):
    x = torch.from_numpy(photograph()).permute(2, 0, 1)[None]
    ours, bilinear, black = x.float() / 255, functional.InterpolationMode.BILINEAR, (0.0, 0.0, 0.0)
    degrees = math.degrees(math.atan(0.3))
    pairs = {
        "autocontrast": (functional.autocontrast(x), augment.autocontrast(ours)),
        "equalize": (functional.equalize(x), augment.equalize(ours)),
        "invert": (functional.invert(x), augment.invert(ours)),
        "posterize": (functional.posterize(x, 3), augment.posterize(ours, same(3, 1))),
        "solarize": (functional.solarize(x, 100), augment.solarize(ours, same(100, 1))),
        "saturation": (functional.adjust_saturation(x, 1.7), augment.saturation(ours, same(1.7, 1))),
        "brightness": (functional.adjust_brightness(x, 1.5), augment.brightness(ours, same(1.5, 1))),
        "contrast": (functional.adjust_contrast(x, 0.4), augment.contrast(ours, same(0.4, 1))),
        "sharpness": (functional.adjust_sharpness(x, 1.9), augment.sharpness(ours, same(1.9, 1))),
        "rotate": (
            functional.rotate(x.float(), 20, bilinear),
            augment.warp(ours, augment.rotation(same(20, 1), (40, 56)), black),
        ),
        "shear": (
            functional.affine(x.float(), 0.0, [0, 0], 1.0, [degrees, 0.0], bilinear, center=[0, 0]),
            augment.warp(ours, augment.shear_x(same(0.3, 1)), black),
        ),
    }
    exact = ("equalize", "invert", "posterize", "solarize", "rotate", "shear")
    for name, (theirs, result) in pairs.items():
        off = (theirs.float() - result * 255).abs().max()
        assert off < (0.01 if name in exact else 1.5), name  # torchvision rounds grey, smoothed images and results


def test_every_operation_runs_on_images_of_any_channels():
    for channels in (1, 3, 4):
        x = torch.rand(2, channels, 8, 12, generator=torch.Generator().manual_seed(0))
        for name in OPERATIONS:
            level = torch.tensor([0.9, 0.3])
            result = apply(name, x, level, -level, (0.5,) * channels)
            assert result.shape == x.shape
            assert 0 <= result.min() <= result.max() <= 1, name


def test_randaugment_is_a_function_of_the_sample_and_leaves_a_quarter_alone():
    rng = SampleRng(sample_keys(0, 3, range(400)))
    images = batch(1)[:, :, :12, :12].expand(400, -1, -1, -1)
    randaugment = RandAugment(MEAN)
    result = randaugment(images, rng)
    torch.testing.assert_close(randaugment(images[7:11], SampleRng(rng.key[7:11])), result[7:11])
    alone = (result == images).flatten(1).all(1).float().mean()
    assert 0.17 < alone < 0.36  # two operations, each left out half of the time
    assert not torch.equal(randaugment(images, SampleRng(sample_keys(0, 4, range(400)))), result)


def test_stronger_is_further_away():
    rng, images = SampleRng(sample_keys(0, 0, range(100))), batch(1)[:, :, :16, :16].expand(100, -1, -1, -1)
    weak, strong = ((RandAugment(MEAN, m, std=0)(images, rng) - images).abs().mean() for m in (2, 9))
    assert weak < 0.8 * strong


def test_mixup_by_hand():
    images, labels = batch(3), torch.tensor([0, 1, 2])
    mix = Mix(0.7)
    torch.testing.assert_close(mix_images(images, mix)[0], 0.7 * images[0] + 0.3 * images[2])
    wanted = torch.tensor([[0.9 * 0.7, 0, 0.9 * 0.3, 0]]) + 0.1 / 4
    torch.testing.assert_close(soft_labels(labels, 4, 0.1, mix)[:1], wanted)
    assert torch.equal(mix_images(images, Mix(1.0)), images)


def test_cutmix_labels_have_the_share_of_the_pixels():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 20, 30)
    rng = np.random.default_rng(0)
    for _ in range(50):
        mix = Mix.draw(rng, 0.0, 1.0, (20, 30))
        mixed = mix_images(images, mix)
        torch.testing.assert_close((mixed[0] == 0).float().mean().item(), mix.own)
        assert (mixed[0] == 3).sum() + (mixed[0] == 0).sum() == mixed[0].numel()


def test_mixes_are_drawn_from_beta_and_switched():
    rng = np.random.default_rng(0)
    drawn = [Mix.draw(rng, 0.8, 1.0, (224, 224)) for _ in range(2000)]
    assert sum(mix.box is not None for mix in drawn) == pytest.approx(1000, abs=100)
    shares = [mix.own for mix in drawn if mix.box is None]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(0.25 / 2.6, abs=0.015)  # Beta(a, a): 1 / (4 (2 a + 1))
    assert Mix.draw(rng, 0.0, 0.0, (8, 8)) == Mix(1.0)


def test_erasing_makes_a_rectangle_of_noise_as_often_as_asked():
    images = torch.full((600, 3, 24, 32), 2.0)
    rng = SampleRng(sample_keys(0, 0, range(600)))
    result = erase(images, rng, 0.25, MEAN, STD)
    changed = (result != images).any(1)  # B H W
    sizes = changed.flatten(1).sum(1)
    assert (sizes > 0).float().mean() == pytest.approx(0.25, abs=0.06)
    for region in changed[sizes > 0]:
        rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert area == region.sum()
        assert 0.01 < area / region.numel() < 0.36
    noise = (result - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    noise = noise[changed[:, None].expand_as(noise)]
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(erase(images, rng, 0.0, MEAN, STD), images)
    torch.testing.assert_close(erase(images[5:9], SampleRng(rng.key[5:9]), 0.25, MEAN, STD), result[5:9])
