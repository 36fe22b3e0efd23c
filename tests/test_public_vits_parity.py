"""Encoders of other projects: the same numbers as transformers' models, from checkpoints in the true formats.

No weights are downloaded: each test makes a small model of random weights and saves it as its project does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from public_models import (
    MODELS,
    clip_plain_gelu,
    close,
    dinov2,
    dinov2_registers,
    dinov3,
    loaded,
    normalised,
    shaken,
    theirs_on,
    vit,
)
from unveil.modeling.public_vits import PublicViT, load_encoder
from unveil.modeling.types import FeatureSpec

transformers = pytest.importorskip("transformers", reason="parity is with transformers' models")


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, PublicViT]:
    model = MODELS[request.param]()
    model.save_pretrained(tmp_path)
    return model, load_encoder(tmp_path)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["trained", "other"])
def test_outputs_and_attention_are_transformers_own(pair: tuple[Any, PublicViT], size: tuple[int, int]):
    """At the size that it was trained at, and at another one, for which positions are resized."""
    model, encoder = pair
    images = torch.rand(2, 3, *size)
    expected, attentions = theirs_on(model, encoder, images)
    with torch.no_grad():
        close(encoder.vit(normalised(encoder, images)), expected)
        assert expected.std() > 0.1, "nothing has died away"
        grid, start = (size[0] // 8, size[1] // 8), encoder.config.num_prefix
        for layer in (0, -1):
            observation = encoder.observe(images, grid, FeatureSpec("cls", layer, features=0))
            close(observation.attention, attentions[layer][:, :, 0, start:])
            assert observation.features is None
            observation = encoder.observe(images, grid, FeatureSpec("all", layer, features=0))
            close(observation.attention, attentions[layer][:, :, start:, start:].mean(2))
        assert observation.layout.grid == grid


def test_every_tensor_finds_its_place(tmp_path: Path, capsys: pytest.CaptureFixture):
    for make in MODELS.values():
        model = make()
        model.save_pretrained(tmp_path / make.__name__)
        capsys.readouterr()
        encoder = load_encoder(tmp_path / make.__name__)
        stderr = capsys.readouterr().err
        assert f"{len(encoder.vit.state_dict())} tensors loaded" in stderr
        assert "missing" not in stderr
        left = stderr.partition("unexpected (left out): ")[2].strip()
        assert set(left.split(", ")) <= {
            "mask_token",
            "embeddings.mask_token",
            "classifier.weight",
            "classifier.bias",
            "",
        }


def test_the_mean_query_is_the_mean_of_the_patches_queries():
    """By hand, from the weights of a rotary encoder: there the mean is taken after the turns."""
    for make in (vit, dinov3):
        encoder = loaded(make())
        images, start = torch.rand(2, 3, 32, 32), encoder.config.num_prefix
        with torch.no_grad():
            observation = encoder.observe(images, (4, 4), FeatureSpec("mean", 1, features=0)).attention
            x, turn = encoder.vit.first_input(encoder.normalised(images))
            x = encoder.vit.blocks[0](x, rotation=turn)
            block = encoder.vit.blocks[1]
            q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 4, 12)).transpose(1, 3).unbind(2)
            if turn is not None:
                cos, sin = turn
                for text in (q, k):
                    half = torch.cat([-text[..., 6:], text[..., :6]], -1)
                    text[:, :, start:] = text[:, :, start:] * cos + half[:, :, start:] * sin
            expected = (q[:, :, start:].mean(2, keepdim=True) @ k.mT / 12**0.5).softmax(-1)[:, :, 0, start:]
        close(observation, expected)


# Features


def test_features_of_one_and_of_several_blocks():
    model = dinov2()
    encoder = loaded(model)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        result = model(normalised(encoder, images), output_hidden_states=True)
        one = encoder.observe(images, (4, 4), FeatureSpec(None, features=1))
        two = encoder.observe(images, (4, 4), FeatureSpec("cls", features=2))
    assert one.attention is None
    close(one.features, result.last_hidden_state[:, 1:])
    parts = [F.layer_norm(h[:, 1:], (48,), eps=1e-6) for h in result.hidden_states[-2:]]
    close(two.features, (parts[0] + parts[1]) / 2)
    assert encoder.feature_dim(FeatureSpec()) == 48


def test_clip_s_projected_features():
    model = clip_plain_gelu()
    encoder = loaded(model)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        result = model(normalised(encoder, images))
        observation = encoder.observe(images, (4, 4), FeatureSpec("cls", features=1, projected=True))
        patches = model.vision_model.post_layernorm(result.last_hidden_state[:, 1:])
        close(observation.features, model.visual_projection(patches))
        close(encoder.vit.projection(encoder.features(images, "cls")), result.image_embeds)
        raw = encoder.observe(images, (4, 4), FeatureSpec("cls", features=1)).features
        close(raw, F.layer_norm(result.last_hidden_state[:, 1:], (48,), eps=1e-6))
    assert encoder.feature_dim(FeatureSpec(projected=True)) == 24


def test_pooled_features():
    encoder = loaded(dinov2_registers())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        x = encoder.vit(normalised(encoder, images))
    close(encoder.features(images, "mean"), x[:, 4:].mean(1))
    close(encoder.features(images, "both"), torch.cat([x[:, 0], x[:, 4:].mean(1)], 1))
    encoder.pool = "cls"
    close(encoder((images * 255).round().to(torch.uint8)), encoder.features((images * 255).round() / 255, "cls"))


def test_only_what_is_read_is_run(monkeypatch: pytest.MonkeyPatch):
    encoder = loaded(dinov2())
    calls = []
    for i, block in enumerate(encoder.vit.blocks):
        block.attn.register_forward_hook(lambda *_, i=i: calls.append(i))
    images = torch.rand(1, 3, 32, 32)
    encoder.observe(images, (4, 4), FeatureSpec("cls", -1, features=0))
    assert calls == [0, 1], "of the last block the row alone"
    calls.clear()
    encoder.observe(images, (4, 4), FeatureSpec("cls", 0, features=0))
    assert calls == []
    encoder.observe(images, (4, 4), FeatureSpec("cls", -1, features=1))
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("beside", ["text", "defaults", "nothing"])
def test_siglip_beside_its_text_tower_and_without_what_a_configuration_says(tmp_path: Path, beside: str):
    """Public files hold both towers, and a configuration that leaves the defaults out: GELU's tanh form, 12 heads."""
    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    vision = transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8)
    text = transformers.SiglipTextConfig(**sizes, vocab_size=50)
    model = shaken(transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)))
    for name, parameter in model.named_parameters():
        if name.endswith("fc1.weight"):
            parameter.data.mul_(3)  # so that the two forms of GELU differ
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if beside == "defaults":
        config["vision_config"] = {"model_type": "siglip_vision_model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if beside == "nothing":
        (tmp_path / "config.json").unlink()
    encoder = load_encoder(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.vision_model(normalised(encoder, images)).last_hidden_state
        close(encoder.vit(normalised(encoder, images)), expected)
    assert (encoder.config.mean, encoder.config.activation) == ((0.5, 0.5, 0.5), "gelu-tanh")
    with pytest.raises(ValueError, match="no class token"):
        encoder.features(images, "cls")
