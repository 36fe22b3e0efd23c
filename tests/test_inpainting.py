"""Inpainting from the visible pixels, as a baseline of runs that predict pixels as they are."""

from __future__ import annotations

import json
import math

import pytest
import torch

import unveil
from tiny import build_of
from unveil.evaluation.inpainting import FILLS, inverse_distance, nearest_visible
from unveil.evaluation.outcomes import read_outcomes
from unveil.evaluation.reconstructors import Inpainting, ModelReconstructor
from unveil.modeling.encoder import SIZES
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import RGB, Batch
from unveil.recipes import mae


def images_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(3, 2, 6, 9, generator=rng), torch.rand(3, 1, 6, 9, generator=rng) < 0.3


def test_every_pixel_is_the_mean_weighted_by_inverse_squared_distance():
    image, known = images_and_masks()
    filled = inverse_distance(image, known)
    for b in range(len(image)):
        places = [(y, x) for y in range(6) for x in range(9) if known[b, 0, y, x]]
        for y in range(6):
            for x in range(9):
                if known[b, 0, y, x]:
                    expected = image[b, :, y, x]
                else:
                    weights = [1 / ((y - v) ** 2 + (x - u) ** 2) for v, u in places]
                    expected = sum(w * image[b, :, v, u] for w, (v, u) in zip(weights, places, strict=True)) / sum(
                        weights
                    )
                assert torch.allclose(filled[b, :, y, x], expected, atol=1e-5)


def test_every_pixel_is_the_nearest_visible_one():
    image, known = images_and_masks()
    filled = nearest_visible(image, known)
    for b, y, x in ((b, y, x) for b in range(3) for y in range(6) for x in range(9)):
        distances = {(v, u): (y - v) ** 2 + (x - u) ** 2 for v in range(6) for u in range(9) if known[b, 0, v, u]}
        nearest = [p for p, d in distances.items() if d == min(distances.values())]
        assert any(torch.equal(filled[b, :, y, x], image[b, :, v, u]) for v, u in nearest)


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_nothing_of_what_is_hidden_is_read(fill):
    model = ModelReconstructor(build_of(mae, norm_pix=False))
    side = model.model.encoder.image_size
    batch = Batch({"rgb": torch.rand(4, 3, *side)}, sample_keys(0, 0, range(4)), torch.ones(()))
    first = Inpainting(model, fill).reconstruct(batch, 0.5)["pixels"]
    assert 0.3 < first.predicted.float().mean() < 0.7
    hidden = first.predicted.expand_as(first.target)
    changed = Batch({"rgb": torch.where(hidden, 0.123, first.target)}, batch.key, batch.progress)
    second = Inpainting(model, fill).reconstruct(changed, 0.5)["pixels"]
    assert torch.equal(first.prediction, second.prediction)
    assert torch.equal(first.prediction[~hidden], first.target[~hidden])
    known = torch.ones(4, 1, *side, dtype=torch.bool)
    known[0] = False
    blank = Batch(batch.maps, batch.key, batch.progress, {"rgb": known})
    filled = Inpainting(model, fill).reconstruct(blank, 0.5)["pixels"].prediction
    assert torch.allclose(filled[0].amax((1, 2)), torch.tensor(RGB.mean))
    assert torch.equal(filled[1:], first.prediction[1:])


def test_evaluate_measures_it_beside_raw_pixels_and_keeps_what_became_of_each_image(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "nano", (24, 2, 2))
    run = unveil.pretrain(
        "mae", data="scenes:count=40,size=32", out=str(tmp_path / "run"), epochs=0.5, batch_size=8, norm_pix=False,
        size="nano", patch=4, image_size=(32,), decoder_dim=16, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    test = {"data": "scenes:count=8,size=32,seed=1", "protocol": ("reconstruct", "heldout"), "hidden": (0.5,)}
    result, heldout = unveil.evaluate(str(run), **test)
    assert set(result.baselines) == {"training mean", "untrained", *FILLS}
    assert set(heldout.baselines) == {"training mean", "untrained"}, "inpainting has no loss"
    for name, own in read_outcomes(run, "reconstruct").items():
        metrics = result.metrics if name == "this run" else result.baselines[name]
        assert math.isclose(own["psnr_0.5_pixels"].mean(), metrics["psnr_0.5_pixels"], rel_tol=1e-5)
    assert "outcomes" not in json.loads((run / "eval" / "reconstruct.json").read_text())
