"""An encoder in other people's tools: gradients when asked, a free batch size, and docs/export.md as it is written."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unveil
from test_teachers_frozen import public_file
from tiny_runs import write_images, write_recipe
from unveil.cli import main
from unveil.data.decode import decode
from unveil.modeling.image_encoder import FeatureExtractor

PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return unveil.pretrain(
        write_recipe(folder), data=str(write_images(folder / "images")), out=str(folder / "runs/a"), device="cpu",
        epochs=1.0, paper=True, workers=1,
    )  # fmt: skip


@pytest.fixture(params=["run", "public"])
def encoder(request: pytest.FixtureRequest, run: Path, tmp_path: Path) -> FeatureExtractor:
    address = run if request.param == "run" else public_file(tmp_path / "vit.safetensors")
    return unveil.load(address, device="cpu")


def images_of(encoder: FeatureExtractor, count: int) -> torch.Tensor:
    return torch.rand(count, encoder.channels, *encoder.image_size)


def test_forward_has_gradients_when_asked(encoder: FeatureExtractor):
    images = images_of(encoder, 2)
    assert not encoder(images).requires_grad, "frozen as it is loaded"
    model = torch.nn.Sequential(encoder.requires_grad_(True), torch.nn.Linear(encoder.dim, 3))
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), encoder(images)
    optimizer.step()
    assert not torch.allclose(encoder(images), before)
    with torch.no_grad():
        assert not encoder(images).requires_grad


def test_another_precision(encoder: FeatureExtractor):
    assert encoder.bfloat16()(images_of(encoder, 2)).dtype == torch.bfloat16


def test_a_free_batch_size_exports_and_traces(encoder: FeatureExtractor):
    example = images_of(encoder, 2)
    free = torch.export.Dim("batch")
    program = torch.export.export(encoder, (example,), dynamic_shapes=({0: free},)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(encoder, example, check_trace=False)
    for count in (1, 2, 9, 200):
        images = images_of(encoder, count)
        for function in (program, traced):
            torch.testing.assert_close(function(images), encoder(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [lambda x: 255 * x, lambda x: (x - 0.45) / 0.22, lambda x: (255 * x).to(torch.int64)],
    ids=["0 to 255", "normalised before", "whole numbers"],
)
def test_images_outside_0_to_1_are_warned_of_once(encoder: FeatureExtractor, change):
    images = images_of(encoder, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(images)
        encoder((255 * images).to(torch.uint8))
        encoder(1.2 * images - 0.1)  # as resizing overshoots
    with pytest.warns(UserWarning, match=r"images are expected in \[0, 1\], and these reach from .* divide by 255"):
        encoder(change(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(change(images))


def test_the_page_runs(run: Path, monkeypatch: pytest.MonkeyPatch):
    """In order; what needs a package that is not there is left out."""
    monkeypatch.chdir(Path(run).parents[1])
    weights = {"norm.weight": torch.ones(4, 2).T}
    torch.save({"model": weights, "args": argparse.Namespace(epochs=3)}, "checkpoint.pth")
    names: dict = {}
    warnings.simplefilter("ignore")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 8
    for block in blocks:
        needed = re.findall(r"^import (\w+)", block, re.M)
        if all(importlib.util.find_spec(name) for name in needed):
            exec(block, names)
    torch.testing.assert_close(load_file("weights.safetensors"), weights)
    x, encoder = names["images"], names["encoder"]
    assert names["pyramid"][0].shape == (2, encoder.dim, *(side // encoder.patch for side in encoder.image_size))
    assert torch.allclose(torch.export.load("encoder.pt2").module()(x), encoder(x), atol=1e-4)


def test_after_the_evaluation_of_a_public_vit_comes_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    public_file(tmp_path / "vit.safetensors")
    data = str(write_images(tmp_path / "images"))
    assert main(["evaluate", "vit.safetensors", "--data", data, "--protocol", "knn", "--no-baselines"]) == 0
    step = capsys.readouterr().out.splitlines()[-1].removeprefix("next: unveil ")
    assert main(shlex.split(step)) == 0
    assert Path("features.npz").exists()


def test_thirteen_bands_need_statistics_and_the_error_says_where(tmp_path: Path):
    state = load_file(public_file(tmp_path / "w.safetensors", channels=13))
    with pytest.raises(ValueError, match=r"13 channels needs as many means and stds.*preprocessor_config\.json"):
        unveil.load(tmp_path / "w.safetensors")
    folder = tmp_path / "bands"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    statistics = {"image_mean": [0.03] * 13, "image_std": [0.02] * 13}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    assert unveil.load(folder, device="cpu").statistics[0] == (0.03,) * 13


def test_pillow_says_nothing_of_images_of_many_bands(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rasterio = pytest.importorskip("rasterio", reason="writes a TIFF of many bands")
    pixels = np.zeros((13, 8, 8), np.uint16)
    profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 13, "dtype": "uint16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
            file.write(pixels)
    with contextlib.suppress(ValueError):
        decode((tmp_path / "a.tif").read_bytes())
    assert not caplog.records
