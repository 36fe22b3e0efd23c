"""What pictures show is what the model says: no statistics of hidden pixels, a baseline with its error, one scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny import batch, build, build_of
from unveil.evaluation.analysis.attention import hidden_tokens
from unveil.evaluation.visualize.neighbours import colour_histograms, distinct_neighbours
from unveil.evaluation.visualize.panels import MapRenderer, other_masks, sample_pictures
from unveil.evaluation.visualize.reconstructions import (
    interpolations,
    map_errors,
    reconstructions,
    unaided_reconstructions,
)
from unveil.modeling.masked_model import MaskedModel
from unveil.modeling.masking import Masker
from unveil.modeling.types import DEPTH, Batch
from unveil.recipes import mae
from unveil.recipes import unveil as own


def hidden_pixels(model: MaskedModel, on: Batch) -> Tensor:
    """B 1 H W: where the model's masks hide the image."""
    hides = hidden_tokens(model.encode_decode(on).mask.visible, 24).reshape(-1, 1, 4, 6)
    return hides.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


@pytest.mark.parametrize("recipe", [mae, own])
def test_the_model_alone_knows_nothing_of_hidden_patches(recipe):
    model, on = build_of(recipe).eval(), batch(2)
    with torch.no_grad():
        hidden = hidden_pixels(model, on)
        changed = replace(on, maps={"rgb": torch.where(hidden, on.maps["rgb"] * 0.2, on.maps["rgb"])})
        alone, aided = (
            [of(model, images, model.encode_decode(images))["rgb"] for images in (on, changed)]
            for of in (unaided_reconstructions, reconstructions)
        )
    everywhere = hidden.expand_as(alone[0])
    if recipe is mae:  # which predicts all hidden patches
        torch.testing.assert_close(alone[0][everywhere], alone[1][everywhere])
        assert (aided[0] - aided[1])[everywhere].abs().mean() > 0.1, "the true statistics show through"
    torch.testing.assert_close(alone[0][~everywhere], on.maps["rgb"][~everywhere])


def test_predicted_statistics_are_used_where_the_target_has_them():
    model, on = build_of(own, visible=0.25, predicted=0.75).eval(), batch(2)
    statistics = next(o for o in model.objectives if o.name == "statistics")
    with torch.no_grad():
        statistics.head.weight.zero_()
        statistics.head.bias.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))  # means of 1, no deviation
        alone = unaided_reconstructions(model, on, model.encode_decode(on))["rgb"]
        hidden = hidden_pixels(model, on)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (model.encoder.modalities[0].mean, model.encoder.modalities[0].std)
    )
    flat = (mean + std).expand_as(alone)
    torch.testing.assert_close(alone[hidden.expand_as(alone)], flat[hidden.expand_as(alone)], atol=1e-4, rtol=1e-4)


def test_models_of_raw_pixels_need_no_second_picture():
    model, on = build(target="pixels").eval(), batch(2)
    assert unaided_reconstructions(model, on, model.encode_decode(on)) == {}


def test_interpolation_reads_visible_pixels_alone_and_errors_are_of_hidden_ones():
    model, on = build_of(mae, visible=0.25).eval(), batch(2)
    with torch.no_grad():
        output = model.encode_decode(on)
        filled = interpolations(model, on, output)["rgb"]
        errors = map_errors(model, on, output, {"rgb": filled})["rgb"]
        hidden = hidden_pixels(model, on).expand_as(filled)
        flat = replace(on, maps={"rgb": torch.full_like(filled, 0.25)})
        exact = interpolations(model, flat, model.encode_decode(flat))
    torch.testing.assert_close(filled[~hidden], on.maps["rgb"][~hidden])
    torch.testing.assert_close(exact["rgb"], flat.maps["rgb"])
    assert float(map_errors(model, flat, output, exact)["rgb"].max()) < 1e-6
    for i in range(2):
        difference = (filled[i] - on.maps["rgb"][i])[hidden[i]]
        torch.testing.assert_close(errors[i], difference.square().mean().sqrt())


def test_a_map_without_a_visible_pixel_has_no_interpolation():
    model, on = build_of(mae).eval(), batch(2)
    nothing = replace(on, valid={"rgb": torch.zeros(2, 1, 16, 24, dtype=torch.bool)})
    output = model.encode_decode(on)
    assert interpolations(model, nothing, output)["rgb"].isnan().all()
    (one,) = sample_pictures(model, nothing, ["a", "b"], model.encoder.modalities, views(model))[0]
    assert one.interpolated is None


def views(model: MaskedModel) -> dict[str, MapRenderer]:
    return {m.name: MapRenderer(m) for m in model.encoder.modalities}


def test_pictures_of_a_sample_have_both_predictions_the_baseline_and_the_mask():
    model, on = build_of(mae).eval(), batch(2)
    (one,) = sample_pictures(model, on, ["a", "b"], model.encoder.modalities, views(model))[1]
    assert one.unaided is not None
    assert one.interpolated is not None
    assert set(one.errors) == {"reconstructed", "unaided", "interpolated"}
    assert all(0 < error < 1 for error in one.errors.values())
    assert (one.grid, len(one.hidden_patches)) == ((4, 6), 12)
    grey = (one.hidden == 128).all(-1)[::4, ::4].flatten()
    assert np.flatnonzero(grey).tolist() == list(one.hidden_patches)


def test_one_image_is_predicted_under_several_masks():
    model, on = build_of(mae).eval(), batch(2)
    (pairs,) = other_masks(model, on, model.encoder.modalities, views(model)).values()
    hidden, predicted = zip(*pairs, strict=True)
    assert len(pairs) == len({one.tobytes() for one in hidden}) == len({one.tobytes() for one in predicted}) == 3


def test_a_mask_without_chance_is_not_shown_again():
    model, on = build_of(mae).eval(), batch(2)
    model.masker = Masker(lambda tokens, observations, batch: tokens.ids.float(), 0.5, 0.5)
    assert other_masks(model, on, model.encoder.modalities, views(model)) == {}


def test_near_things_differ_in_the_colours_of_depth():
    far, near = MapRenderer(DEPTH, (1.0, 60.0), "m"), MapRenderer(DEPTH, (10.0, 12.0), "m")
    assert (far.is_log, near.is_log) == (True, False)
    assert not MapRenderer(DEPTH, (-1.0, 60.0)).is_log, "no logarithm of what is below 0"
    depth = torch.tensor([[[1.0, 3.0, 55.0, 60.0]]])
    picture = far(depth, torch.ones(1, 1, 4, dtype=torch.bool)).astype(int)[0]
    steps = np.abs(np.diff(picture, axis=0)).sum(axis=1)
    assert steps[0] > 3 * steps[2], "two metres count more near by than five far away"
    assert far.key is not None
    assert far.key.name == "depth, log scale"


def test_near_duplicates_of_neighbours_are_counted_once():
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1] = images[0] * 0.9 + 0.01  # the same picture, a little darker
    images[2] = images[0] + 0.01 * torch.rand(3, 32, 32)
    features = torch.eye(6)[[0, 0, 0, 1, 2, 3]] + 0.1
    ((first, *others),) = distinct_neighbours((features[:1], features), (images[:1], images), 3)
    assert first.alike == 2
    assert len(others) == 2
    assert {0, 1, 2}.isdisjoint(other.place for other in others)
    assert [first.distance, *(o.distance for o in others)] == sorted([first.distance, *(o.distance for o in others)])
    flat = torch.zeros(3, 3, 8, 8)
    assert len(distinct_neighbours((features[:1], features[:3]), (flat[:1], flat), 3)[0]) == 3


def test_colour_alone_does_not_know_places():
    images = (
        torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.2, 1, 1, 1])[:, None, None, None]
    )
    images[1] = images[0].flatten(1)[:, torch.randperm(256)].unflatten(1, (16, 16))
    histograms = colour_histograms(images)
    torch.testing.assert_close(histograms[0], histograms[1])
    torch.testing.assert_close(histograms.norm(dim=1), torch.ones(4))
    assert float(histograms[0] @ histograms[2]) < 0.9
    assert colour_histograms(images[:, :1] * 40).shape == (4, 4)
