"""`unveil.evaluate` of a module: one of `unveil.load` as its run, one of other code by its features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unveil
from tiny_runs import write_images

OPTIONS = {"device": "cpu", "precision": "float32", "cache": False}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("module") / "images"))


@pytest.fixture(scope="module")
def run(images: str) -> Path:
    short = {"device": "cpu", "epochs": 0.2, "batch_size": 8, "image_size": 16, "patch": 4, "size": "nano"}
    return unveil.pretrain("mae", data=images, out=Path(images).parent / "run", workers=1, **short)


class Means(nn.Module):
    """The mean colour of each quarter of an image."""

    image_size = (16, 16)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def test_a_loaded_module_has_the_scores_of_its_run(run: Path, images: str):
    names = ("knn", "linear-lbfgs")
    of_run = unveil.evaluate(run, data=images, protocol=names, **OPTIONS)
    module = unveil.load(run, device="cpu").train()
    of_module = unveil.evaluate(module, data=images, protocol=names, **OPTIONS)
    for one, other in zip(of_run, of_module, strict=True):
        assert one.metrics == other.metrics
        assert one.baselines["pixels"] == other.baselines["pixels"]
        assert one.baselines.keys() == other.baselines.keys()
    assert module.training, "it is as it was"
    (own,) = unveil.evaluate(unveil.load(run, device="cpu", pool="cls"), data=images, protocol="knn", **OPTIONS)
    (chosen,) = unveil.evaluate(run, data=images, protocol="knn", pool="cls", **OPTIONS)
    assert own.metrics == chosen.metrics


def test_a_module_of_other_code_is_measured_by_its_features(images: str):
    (result,) = unveil.evaluate(Means(), data=images, protocol="knn", **OPTIONS)
    assert set(result.baselines) == {"pixels"}
    assert 0 <= result.metrics["accuracy"] <= 1


def test_what_a_module_does_not_have_is_said(images: str):
    with pytest.raises(ValueError, match=r"Linear does not say the size of its images; set it: module\.image_size"):
        unveil.evaluate(nn.Linear(3, 2), data=images, protocol="knn", **OPTIONS)
    with pytest.raises(ValueError, match="this encoder gives features only"):
        unveil.evaluate(Means(), data=images, protocol="finetune", **OPTIONS)
    with pytest.raises(ValueError, match="a module is measured on labelled images"):
        unveil.evaluate(Means(), data=images, protocol="segment", **OPTIONS)
    with pytest.raises(ValueError, match="a module of your own has none"):
        unveil.evaluate(Means(), data=images, protocol="knn", layer=1, **OPTIONS)
    flat = nn.Flatten(0)
    flat.image_size = (16, 16)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"a tensor of features, B x D, is needed"):
        unveil.evaluate(flat, data=images, protocol="knn", **OPTIONS)
    assert torch.is_grad_enabled()
