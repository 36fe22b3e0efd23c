"""Pixels without a truth in the maps that an encoder is given: read as in training."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.aligned_folders import open_images
from unveil.data.modality_config import declare
from unveil.data.read_map import read_map
from unveil.evaluation.features import RawPixels, extract
from unveil.evaluation.finetuning import FineTuner, FineTuning
from unveil.evaluation.types import Context
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.types import DEPTH, RGB, Batch


@pytest.mark.parametrize("hole", [0.0, -9999.0, float("nan"), float("inf")])
def test_an_encoder_of_depth_reads_holes_as_training_does(hole: float):
    encoder = ImageEncoder(Encoder([DEPTH], (32,), 8, dim=16, depth=2, heads=2))
    depth = torch.rand(2, 1, 32, 32) + 1
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[:, :, :12] = False
    trained_on = Batch({"depth": depth}, torch.zeros(2, dtype=torch.int64), torch.ones(()), {"depth": valid})
    with torch.no_grad():
        expected = encoder.encoder(encoder.encoder.embed(trained_on)).final[:, 1:].mean(1)
    holed = torch.where(valid, depth, hole)
    torch.testing.assert_close(encoder(holed), expected)
    torch.testing.assert_close(encoder.features(trained_on.marked("depth"), "mean"), expected)
    assert not torch.equal(encoder(depth), expected)
    assert encoder.maps(holed, [1])[0].isfinite().all()


def test_rgb_images_with_missing_pixels_are_told_once_and_read_as_the_mean():
    encoder = ImageEncoder(Encoder([RGB], (32,), 8, dim=16, depth=1, heads=2))
    images = torch.rand(2, 3, 32, 32)
    holed = images.clone()
    holed[:, :, :8] = torch.nan
    mean = torch.tensor(RGB.mean)[:, None, None]
    with pytest.warns(UserWarning, match="images hold NaN: these pixels are read as missing, as the mean colour"):
        features = encoder(holed)
    torch.testing.assert_close(features, encoder(torch.where(holed.isnan(), mean, holed)))
    assert RawPixels(RGB, (32, 32)).features(holed, "mean").isfinite().all()


def test_a_run_of_depth_is_evaluated_with_its_holes(tmp_path: Path):
    """Features of files with holes are those of the same maps with the holes marked."""
    rng = np.random.default_rng(0)
    maps = [rng.uniform(1, 3, (32, 32)).astype(np.float32) for _ in range(4)]
    (tmp_path / "depth").mkdir()
    (tmp_path / "rgb").mkdir()
    for i, depth in enumerate(maps):
        depth[:10] = np.nan
        np.save(tmp_path / "depth" / f"{i}.npy", depth)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "rgb" / f"{i}.png")
    encoder = ImageEncoder(Encoder([DEPTH], (32,), 8, dim=16, depth=2, heads=2))
    source = open_images(tmp_path, 1, declare(["depth"]))
    expected = encoder(torch.tensor(np.stack(maps))[:, None])
    torch.testing.assert_close(extract(encoder, source, "mean").values, expected, rtol=1e-3, atol=1e-4)


def test_depth_at_and_below_zero_is_no_truth_whatever_number_says_so():
    (depth,) = declare(["depth"])
    metres = np.full((6, 4), 3.5, np.float32)
    metres[:4, 0] = np.nan, -9999, 0, np.finfo(np.float32).min
    buffer = io.BytesIO()
    Image.fromarray(metres).save(buffer, "TIFF")
    read = read_map(buffer.getvalue(), depth)
    assert read.valid is not None
    assert read.valid[0, :, 0].tolist() == [False] * 4 + [True] * 2
    assert read.values.unique().tolist() == [0, 3.5]
    own = read_map(buffer.getvalue(), replace(depth, nodata=(-9999.0,)))  # what a declaration names is all
    assert own.valid is not None
    assert own.valid[0, :, 0].tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("depth", r"has 3 channels, 1 declared \(8-bit PNG\): save it with 1, or declare channels = 3"),
        ("semseg", r"has 3 channels, class ids have one \(8-bit PNG\): save the number of the class at each pixel"),
    ],
)
def test_maps_that_were_saved_in_colours_say_how_to_save_them(tmp_path: Path, name: str, message: str):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 10, 10)).save(buffer, "PNG")
    (declared,) = declare([name])
    with pytest.raises(ValueError, match=message):
        read_map(buffer.getvalue(), declared)


def test_class_ids_in_a_jpeg_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 5).save(buffer, "JPEG")
    (declared,) = declare(["semseg"])
    with pytest.raises(ValueError, match="class ids are changed by the compression of JPEG; save them as PNG"):
        read_map(buffer.getvalue(), declared)


def test_colours_of_measured_maps_are_not_augmented():
    encoder = ImageEncoder(Encoder([DEPTH], (32,), 8, dim=16, depth=1, heads=2))
    data: Any = None
    with pytest.raises(ValueError, match="and depth is measured in a unit of its own: give --randaugment 0"):
        FineTuner(encoder, data, FineTuning(randaugment=9), "mean", Context())
