"""MILAN's loss over all tokens, class token included; and the control of every recipe that takes a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from test_cmtmae import build
from tiny import batch
from unveil.modeling.encoder import SIZES, Encoder
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.public_vits import ViTConfig, untrained_vit
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import RGB, Batch, FeatureSpec, Modality
from unveil.recipes import milan
from unveil.recipes.registry import build_recipe, default_modalities, defaults_of, load_recipe, recipe_cards

TAUGHT = [name for name in recipe_cards() if "teacher" in defaults_of(load_recipe(name))]


def test_the_loss_is_the_mean_over_patches_and_class_token():
    model, on = build(milan).eval(), batch()
    output = model.encode_decode(on)
    teacher = model.teachers["teacher"].encoder
    truth = teacher.vit(teacher.normalised(on.maps["rgb"]))  # the random one: class token, then patches in their order
    places = torch.cat([torch.zeros(3, 1, dtype=torch.long), 1 + output.queries["features"].ids], dim=1)
    decoder, head = model.decoders["features"], model.objectives[0].head
    own = decoder.norm(decoder.embed(output.latents.final[:, :1]))
    guess = head(torch.cat([own, output.decoded["features"]], dim=1))
    wanted = truth.gather(1, places[..., None].expand_as(truth))
    assert places.sort(dim=1).values.tolist() == [list(range(25))] * 3
    expected = (2 - 2 * F.cosine_similarity(guess, wanted, dim=-1)).mean()
    torch.testing.assert_close(mean_loss(model(on)), expected)


def test_predicted_patches_alone_have_no_class_token():
    assert set(build(milan)(batch())) == {"features", "class token"}
    assert set(build(milan, positions="predicted")(batch())) == {"features"}


@pytest.mark.parametrize("num_prefix", [1, 5])
def test_a_teacher_s_class_token_is_its_first(num_prefix: int):
    encoder = untrained_vit(
        ViTConfig(24, 2, 2, 4, 48, (4, 6), num_prefix=num_prefix, projection=8, final_norm="cls"), 0
    )
    images = torch.rand(2, 3, 16, 24)
    observation = encoder.observe(images, (4, 6), FeatureSpec(projected=True, class_token=True))
    whole = encoder.vit.projection(encoder.vit.norm(encoder.vit(encoder.normalised(images))))
    torch.testing.assert_close(observation.class_token, whole[:, 0])
    torch.testing.assert_close(observation.features, whole[:, num_prefix:])
    assert encoder.observe(images, (4, 6), FeatureSpec(projected=True)).class_token is None
    headless = untrained_vit(replace(encoder.config, num_prefix=0), 0)
    with pytest.raises(ValueError, match="no class token whose features"):
        headless.observe(images, (4, 6), FeatureSpec("mean", class_token=True))


def test_our_own_encoder_s_class_token():
    encoder = Encoder((Modality(),), (16, 24), 4, 24, 3, 2)
    tokens = encoder.embed(batch())
    observation, whole = encoder.observe(tokens, FeatureSpec(class_token=True)), encoder(tokens).final
    torch.testing.assert_close(observation.class_token, whole[:, 0])
    torch.testing.assert_close(observation.features, whole[:, 1:])
    several = encoder.observe(tokens, FeatureSpec(features=2, class_token=True))
    plain = encoder.observe(tokens, FeatureSpec(features=2))
    torch.testing.assert_close(several.features, plain.features)
    assert several.class_token.shape == (3, 24)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_random_teacher_is_all_that_the_control_needs(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SIZES, "base", (24, 2, 2))
    monkeypatch.setitem(SIZES, "tiny", (24, 2, 2))
    load = load_recipe(name)
    modalities = default_modalities(load) or (RGB,)
    options: dict[str, Any] = {"patch": 8, "image_size": (32,), "decoder_dim": 16, "decoder_depth": 1}
    if "decoder_heads" in defaults_of(load):
        options["decoder_heads"] = 2
    if name == "multimae":  # whose masks no teacher guides
        options["target"] = "teacher"
    made = build_recipe(load, modalities, {**options, "teacher": "random"})
    maps = {"rgb": torch.rand(2, 3, 32, 32), "depth": torch.rand(2, 1, 32, 32)}
    maps["semseg"] = torch.randint(133, (2, 1, 8, 8))
    given = {m.name: maps[m.name] for m in modalities}
    for stage in made.stages:
        loss = mean_loss(stage.build()(Batch(given, sample_keys(0, 0, range(2)), torch.zeros(()))))
        loss.backward()
        assert loss.isfinite()


def test_the_recipes_that_take_a_teacher_are_known():
    assert set(TAUGHT) == {"cmtmae", "milan", "mim", "multimae", "multimae-attention"}
