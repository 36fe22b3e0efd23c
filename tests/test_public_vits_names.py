"""The same weights under the names, shapes and files of each project: all give the same encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from public_models import (
    DINOV2,
    EAGER,
    WIDE,
    clip,
    close,
    deit,
    dinov2,
    dinov2_giant,
    dinov2_registers,
    dinov3,
    dinov3_gated,
    loaded,
    normalised,
    shaken,
    theirs_on,
    vit,
)
from unveil.modeling.public_vits import PublicViT, load_encoder
from unveil.modeling.types import FeatureSpec

transformers = pytest.importorskip("transformers", reason="parity is with transformers' models")


def timm_mlp(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of an MLP's layers -> timm's."""
    return {name.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2."): t for name, t in state.items()}


def split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> timm's: prefix and places apart again, patches as a convolution."""
    state = timm_mlp(state)
    width = state["prefix"].shape[1]
    table = state["table"].reshape(1, -1, width)
    names = {name: t for name, t in state.items() if name not in ("prefix", "table", "embed.weight", "embed.bias")}
    weight = state["embed.weight"].unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2).contiguous()
    places = torch.cat([torch.randn(1, len(state["prefix"][:1]), width), table], 1)
    names["cls_token"] = state["prefix"][None, :1] - places[:, :1]
    return {
        **names,
        "pos_embed": places,
        "patch_embed.proj.weight": weight,
        "patch_embed.proj.bias": state["embed.bias"],
    }


def same(first: PublicViT, second: PublicViT, query: str = "cls") -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        a, b = (e.observe(images, (3, 5), FeatureSpec(query)) for e in (first, second))
    close(a.attention, b.attention)
    close(a.features, b.features)


@pytest.mark.parametrize("wrapper", ["", "module.", "backbone.", "module.backbone."])
def test_public_names_of_plain_vits(wrapper: str, tmp_path: Path):
    """DINO, MAE, DeiT and timm share them; a DINO checkpoint holds a teacher and a student."""
    expected = loaded(vit_with(eps=1e-6))
    state = {wrapper + name: tensor for name, tensor in split(expected.vit.state_dict()).items()}
    state |= {f"{wrapper}head.weight": torch.zeros(10, 48), f"{wrapper}head.bias": torch.zeros(10)}
    torch.save({"teacher": state, "epoch": 3} if "backbone" in wrapper else state, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"how many heads share its width of 48 is not known"):
        load_encoder(tmp_path / "vit.pth")
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    tensors = {
        "architecture": "vit_tiny",
        "num_attention_heads": 4,
        "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3},
    }
    (folder / "config.json").write_text(json.dumps(tensors))
    encoder = load_encoder(folder)
    assert (encoder.config.mean, encoder.config.std, encoder.config.antialias) == ((0.1,) * 3, (0.2,) * 3, True)
    encoder.mean.copy_(expected.mean)
    encoder.std.copy_(expected.std)
    images = torch.rand(2, 3, 32, 32)
    close(encoder.features(images, "both"), expected.features(images, "both"))


def vit_with(eps: float) -> Any:
    config = transformers.ViTConfig(**WIDE, **EAGER, layer_norm_eps=eps)
    return shaken(transformers.ViTModel(config, add_pooling_layer=False))


def test_dinov2_s_public_names(tmp_path: Path):
    for make, folder in ((dinov2, "a"), (dinov2_registers, "b"), (dinov2_giant, "c")):
        expected = loaded(make())
        state = split(expected.vit.state_dict())
        if expected.config.num_prefix > 1:
            state["register_tokens"] = expected.vit.prefix[None, 1:]
        if expected.config.is_gated:
            state = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in state.items()}
        for i in range(3):  # a run on many machines keeps its blocks in groups
            state = {n.replace(f"blocks.{i}.", f"blocks.{i // 2}.{i}.", 1): t for n, t in state.items()}
        state["mask_token"] = torch.zeros(1, 48)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"num_attention_heads": 4}')
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / folder / "model.safetensors")
        same(load_encoder(tmp_path / folder), expected)


def test_dinov3_s_public_names(tmp_path: Path):
    for make, folder in ((dinov3, "a"), (dinov3_gated, "b")):
        expected = loaded(make())
        state = timm_mlp(expected.vit.state_dict())
        state = {n: t for n, t in state.items() if n not in ("prefix", "embed.weight", "embed.bias")}
        prefix = expected.vit.prefix[None]
        state |= {"cls_token": prefix[:, :1], "storage_tokens": prefix[:, 1:], "mask_token": torch.zeros(1, 48)}
        state["patch_embed.proj.weight"] = expected.vit.embed.weight.unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2)
        state["patch_embed.proj.bias"] = expected.vit.embed.bias
        state["rope_embed.periods"] = 100.0 ** (torch.arange(3) / 3)
        for n in [n for n in state if n.endswith("qkv.bias")]:
            assert state[n][48:96].eq(0).all(), "transformers has no key bias"
            state[n] = state[n].clone()
            state[n][48:96] = torch.nan
            state[f"{n}_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(48)
        if expected.config.is_gated:
            for n in [n for n in state if "mlp.fc1" in n]:
                state[n.replace("fc1", "w1")], state[n.replace("fc1", "w2")] = (
                    t.clone() for t in state.pop(n).chunk(2)
                )
            state = {n.replace("mlp.fc2", "mlp.w3"): t for n, t in state.items()}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"num_attention_heads": 4}')
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / folder / "model.safetensors")
        encoder = load_encoder(tmp_path / folder)
        assert encoder.config.theta == pytest.approx(100)
        same(encoder, expected)
        same(encoder, expected, "mean")


def openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIP -> OpenAI's names, with their fused projections."""
    names = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "logit_scale": torch.ones(()),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
        "positional_embedding": torch.zeros(77, 8),
    }
    for kind in ("weight", "bias"):
        names[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        names[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for i in range(3):
            own, layer = f"visual.transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
            names[f"{own}.attn.in_proj_{kind}"] = torch.cat(
                [state[f"{layer}.self_attn.{p}_proj.{kind}"] for p in ("q", "k", "v")]
            )
            names[f"{own}.attn.out_proj.{kind}"] = state[f"{layer}.self_attn.out_proj.{kind}"]
            for theirs, hf in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                names[f"{own}.{theirs}.{kind}"] = state[f"{layer}.{hf}.{kind}"]
            for theirs, hf in (("c_fc", "fc1"), ("c_proj", "fc2")):
                names[f"{own}.mlp.{theirs}.{kind}"] = state[f"{layer}.mlp.{hf}.{kind}"]
    return names


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_openai_s_and_openclip_s_names(activation: str, tmp_path: Path):
    config = transformers.CLIPVisionConfig(
        **{**WIDE, "hidden_size": 64, "num_attention_heads": 1}, **EAGER, hidden_act=activation, projection_dim=24
    )
    model = shaken(transformers.CLIPVisionModelWithProjection(config))
    model.save_pretrained(tmp_path / "hf")
    expected = load_encoder(tmp_path / "hf")
    state = openai_names(load_file(tmp_path / "hf" / "model.safetensors"))
    if activation == "quick_gelu":
        torch.save(state, tmp_path / "ViT.pt")
        encoder = load_encoder(tmp_path / "ViT.pt")
    else:
        folder = tmp_path / "open_clip"
        folder.mkdir()
        save_file(state, folder / "open_clip_model.safetensors")
        tensors = {
            "model_cfg": {"vision_cfg": {"head_width": 64}},
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(tensors))
        encoder = load_encoder(folder)
        assert encoder.config.mean == (0.5,) * 3
        encoder.mean.copy_(expected.mean)
        encoder.std.copy_(expected.std)
    assert expected.config.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert encoder.config.activation == activation.replace("_", "-")
    same(encoder, expected)
    images = torch.rand(1, 3, 32, 32)
    close(*(e.observe(images, (4, 4), FeatureSpec(None, projected=True)).features for e in (encoder, expected)))


def test_half_precision_weights_are_read(tmp_path: Path):
    model = clip().half()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    images = torch.rand(1, 3, 32, 32)
    expected, _ = theirs_on(model.float(), encoder, images)
    close(encoder.vit(normalised(encoder, images)), expected)


def test_a_sharded_folder(tmp_path: Path):
    model = vit()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    encoder = load_encoder(tmp_path)
    images = torch.rand(1, 3, 32, 32)
    close(encoder.vit(normalised(encoder, images)), theirs_on(model, encoder, images)[0])


def test_patches_of_14_on_a_grid_of_14():
    """Trained at 224 with 16 x 16 patches, read at 196: the class token keeps its place, the table is resized."""
    config = transformers.Dinov2Config(**{**DINOV2, "image_size": 224, "patch_size": 14}, **EAGER)
    model = shaken(transformers.Dinov2Model(config))
    encoder = loaded(model)
    images = torch.rand(1, 3, 196, 196)
    expected, attentions = theirs_on(model, encoder, images)
    with torch.no_grad():
        observation = encoder.observe(images, (14, 14), FeatureSpec("cls"))
    close(observation.features, expected[:, 1:])
    close(observation.attention, attentions[-1][:, :, 0, 1:])


@pytest.mark.parametrize(
    ("make", "mean"),
    [(clip, 0.4815), (dinov2, 0.485), (dinov3, 0.485), (vit, 0.5), (deit, 0.485)],
    ids=["clip", "dinov2", "dinov3", "vit", "deit"],
)
def test_each_has_its_own_normalisation(make: Callable[[], Any], mean: float, tmp_path: Path):
    make().save_pretrained(tmp_path)
    assert load_encoder(tmp_path).config.mean[0] == pytest.approx(mean, abs=1e-4)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}')
    config = load_encoder(tmp_path).config
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert load_encoder(tmp_path / "model.safetensors").config == config, "the same file by its own name"
