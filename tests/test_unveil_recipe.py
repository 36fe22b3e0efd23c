"""The library's own recipe: what it adds to CrossMAE, and the mean and deviation of patches as a target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unveil
from tiny import batch, build_of, check_options, modality
from tiny_runs import journal, write_images
from unveil.modeling.masked_model import MaskedModel, Objective
from unveil.modeling.optim import Optim
from unveil.modeling.targets import PatchStatistics, Pixels, patch_statistics
from unveil.modeling.types import Batch
from unveil.recipes import crossmae
from unveil.recipes import unveil as own
from unveil.training.trainer import Settings, Trainer


def objectives(model: MaskedModel) -> dict[str, Objective]:
    return {o.name: o for o in model.objectives if isinstance(o, Objective)}


class TestPatchStatistics:
    def test_they_are_what_norm_pix_takes_away(self):
        images, target = batch(2), PatchStatistics(modality(3), 4)
        values, valid = target(images, {})
        assert values.shape == (2, 24, target.dim)
        assert bool(valid.all())
        patches = Pixels(modality(3), 4, norm_pix=False)(images, {})[0].unflatten(-1, (16, 3))
        for channel in range(3):
            mean, std = patch_statistics(patches[..., channel])
            torch.testing.assert_close(values[..., channel], mean[..., 0])
            torch.testing.assert_close(values[..., 3 + channel], std[..., 0])

    def test_holes_do_not_count(self):
        images, target = batch(2), PatchStatistics(modality(3), 4)
        hole = torch.ones(2, 1, 16, 24, dtype=torch.bool)
        hole[0, :, :4, :4] = False  # the first patch whole
        hole[1, :, :2, :4] = False  # and half of it
        painted = {"rgb": torch.where(hole, images.maps["rgb"], torch.nan)}
        values, valid = target(replace(images, maps=painted, valid={"rgb": hole}), {})
        assert valid[:, 0].flatten().tolist() == [0, 1]
        assert bool(valid[:, 1:].all())
        assert bool(values.isfinite().all())
        half = (images.maps["rgb"][1, :, 2:4, :4].flatten(1) - 0.4) / 0.3
        torch.testing.assert_close(values[1, 0, :3], half.mean(dim=1))
        torch.testing.assert_close(values[1, 0, 3:], half.std(dim=1), atol=1e-4, rtol=1e-4)

    def test_those_of_samples_without_the_modality_do_not_count(self):
        lacking = replace(batch(2), present={"rgb": torch.tensor([True, False])})
        _, valid = PatchStatistics(modality(3), 4)(lacking, {})
        assert valid.flatten(1).all(dim=1).tolist() == [True, False]


def test_its_options_are_explained():
    check_options(own.recipe)


def test_without_its_additions_it_is_crossmae():
    plain = {"visible": 0.25, "predicted": 0.25}
    losses = []
    for recipe, options in ((own, {"statistics": 0.0}), (crossmae, {"lr_scale": "none"})):
        torch.manual_seed(0)
        model = build_of(recipe, **plain, **options)
        losses.append(model(batch())["pixels"][0])
    assert torch.equal(*losses)


def test_it_reads_and_predicts_the_shares_that_it_says():
    model = build_of(own, visible=0.125, predicted=0.25)
    mask = model.mask_input(batch())[2]
    assert (mask.visible.shape[1], mask.predicted.shape[1]) == (3, 6)
    assert own.recipe().optim.lr_factor == 1.0


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="statistics is a weight of at least 0; got -1"):
        own.recipe(statistics=-1.0)


def test_it_learns_the_colours_of_hidden_patches():
    """Of images that are one colour each: what normalised pixels alone cannot tell."""
    torch.manual_seed(0)
    model = build_of(own, visible=0.25, statistics=1.0)
    trainer = Trainer(model, Optim(1e-2, 16, 1.0), Settings("cpu", "float32", 16, False, 10, 1.0))

    def flat(step: int) -> Batch:
        colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(step))
        return replace(batch(16), maps={"rgb": colours.expand(-1, -1, 16, 24).contiguous()})

    def error() -> Tensor:
        output = model.encode_decode(flat(10_000))
        prediction, target, _ = objectives(model)["statistics"].prediction_and_target(output, flat(10_000))
        return (prediction - target)[..., :3].square().mean()

    before = error().item()
    for step in range(60):
        trainer.update(flat(step), 1e-2)
    assert error().item() < 0.25 * before


def test_from_images_to_a_report(tmp_path: Path):
    data = str(write_images(tmp_path / "images"))
    options = {"size": "nano", "image_size": (16,), "patch": 4, "epochs": 2, "batch_size": 10, "lr": 0.01}
    run = unveil.pretrain("unveil", data=data, out=str(tmp_path / "run"), device="cpu", **options)
    assert {"pixels", "statistics"} <= set(journal(run, "step")[-1]["losses"])
    unveil.evaluate(str(run), data=data, protocol=("knn",), device="cpu", baselines=False)
    assert "knn" in json.loads((run / "eval/knn.json").read_text())["protocol"]
    unveil.look(str(run), out=str(tmp_path / "look.png"))
    assert unveil.report(str(run)).stat().st_size > 10_000
