"""Encoders of other projects: the same numbers as transformers' models, from checkpoints in the true formats.

No weights are downloaded: each test makes a small model of random weights and saves it as its project does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unveil.foreign import ForeignEncoder, load_encoder
from unveil.records import Reading

transformers = pytest.importorskip("transformers", reason="parity is with transformers' models")

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = {**SIZES, "intermediate_size": 96}
DINOV2 = {**SIZES, "mlp_ratio": 2, "layerscale_value": 0.7}
EAGER = {"attn_implementation": "eager"}


def shaken(model: nn.Module) -> Any:
    """The model with weights that are large enough for every part of it to count."""
    for parameter in model.parameters():
        parameter.data.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def clip() -> Any:
    return shaken(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**WIDE, **EAGER)))


def clip_plain_gelu() -> Any:
    config = transformers.CLIPVisionConfig(**WIDE, **EAGER, hidden_act="gelu", projection_dim=24)
    return shaken(transformers.CLIPVisionModelWithProjection(config))


def dinov2(**options: Any) -> Any:
    return shaken(transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2, **EAGER, **options)))


def dinov2_giant() -> Any:
    return dinov2(use_swiglu_ffn=True)


def dinov2_registers() -> Any:
    config = transformers.Dinov2WithRegistersConfig(**DINOV2, **EAGER, num_register_tokens=3)
    return shaken(transformers.Dinov2WithRegistersModel(config))


def dinov3(**options: Any) -> Any:
    config = transformers.DINOv3ViTConfig(**WIDE, **EAGER, num_register_tokens=3, **options)
    return shaken(transformers.DINOv3ViTModel(config))


def dinov3_gated() -> Any:
    return dinov3(use_gated_mlp=True, hidden_act="silu", key_bias=False, mlp_bias=True)


def vit() -> Any:
    return shaken(transformers.ViTModel(transformers.ViTConfig(**WIDE, **EAGER), add_pooling_layer=False))


def vit_classifier() -> Any:
    return shaken(transformers.ViTForImageClassification(transformers.ViTConfig(**WIDE, **EAGER)))


def deit() -> Any:
    return shaken(transformers.DeiTModel(transformers.DeiTConfig(**WIDE, **EAGER), add_pooling_layer=False))


MODELS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        clip, clip_plain_gelu, dinov2, dinov2_giant, dinov2_registers, dinov3, dinov3_gated, vit, vit_classifier, deit,
    )
}  # fmt: skip


def normalised(encoder: ForeignEncoder, images: Tensor) -> Tensor:
    return (images - torch.tensor(encoder.spec.mean)[:, None, None]) / torch.tensor(encoder.spec.std)[:, None, None]


def theirs_on(model: Any, encoder: ForeignEncoder, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The last map of transformers' model and the attention of all its layers."""
    inner = next((getattr(model, name) for name in ("vision_model", "vit") if hasattr(model, name)), model)
    resizes = not isinstance(model, (transformers.Dinov2Model, transformers.Dinov2WithRegistersModel)) and (
        type(model).__name__ != "DINOv3ViTModel"
    )
    options = {"interpolate_pos_encoding": True} if resizes else {}
    with torch.no_grad():
        found = inner(normalised(encoder, images), output_attentions=True, **options)
    return found.last_hidden_state, found.attentions


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, ForeignEncoder]:
    model = MODELS[request.param]()
    model.save_pretrained(tmp_path)
    return model, load_encoder(tmp_path)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["trained", "other"])
def test_outputs_and_attention_are_transformers_own(pair: tuple[Any, ForeignEncoder], size: tuple[int, int]):
    """At the size that it was trained at, and at another one, for which positions are resized."""
    model, encoder = pair
    images = torch.rand(2, 3, *size)
    expected, attentions = theirs_on(model, encoder, images)
    with torch.no_grad():
        close(encoder.vit(normalised(encoder, images)), expected)
        assert expected.std() > 0.1, "nothing has died away"
        grid, start = (size[0] // 8, size[1] // 8), encoder.spec.num_prefix
        for layer in (0, -1):
            seen = encoder.observe(images, grid, Reading("cls", layer, features=0))
            close(seen.attention, attentions[layer][:, :, 0, start:])
            assert seen.features is None
            seen = encoder.observe(images, grid, Reading("all", layer, features=0))
            close(seen.attention, attentions[layer][:, :, start:, start:].mean(2))
        assert seen.layout.grid == grid


def test_every_tensor_finds_its_place(tmp_path: Path, capsys: pytest.CaptureFixture):
    for make in MODELS.values():
        model = make()
        model.save_pretrained(tmp_path / make.__name__)
        capsys.readouterr()
        encoder = load_encoder(tmp_path / make.__name__)
        told = capsys.readouterr().err
        assert f"{len(encoder.vit.state_dict())} tensors loaded" in told
        assert "missing" not in told
        left = told.partition("unexpected (left out): ")[2].strip()
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
        images, start = torch.rand(2, 3, 32, 32), encoder.spec.num_prefix
        with torch.no_grad():
            seen = encoder.observe(images, (4, 4), Reading("mean", 1, features=0)).attention
            x, turn = encoder.vit.begin(encoder.normalised(images))
            x = encoder.vit.blocks[0](x, turn)
            block = encoder.vit.blocks[1]
            q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 4, 12)).transpose(1, 3).unbind(2)
            if turn is not None:
                cos, sin = turn
                for part in (q, k):
                    half = torch.cat([-part[..., 6:], part[..., :6]], -1)
                    part[:, :, start:] = part[:, :, start:] * cos + half[:, :, start:] * sin
            expected = (q[:, :, start:].mean(2, keepdim=True) @ k.mT / 12**0.5).softmax(-1)[:, :, 0, start:]
        close(seen, expected)


def loaded(model: Any) -> ForeignEncoder:
    """Through a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_encoder(folder)


# Features


def test_features_of_one_and_of_several_blocks():
    model = dinov2()
    encoder = loaded(model)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = model(normalised(encoder, images), output_hidden_states=True)
        one = encoder.observe(images, (4, 4), Reading(None, features=1))
        two = encoder.observe(images, (4, 4), Reading("cls", features=2))
    assert one.attention is None
    close(one.features, found.last_hidden_state[:, 1:])
    parts = [F.layer_norm(h[:, 1:], (48,), eps=1e-6) for h in found.hidden_states[-2:]]
    close(two.features, (parts[0] + parts[1]) / 2)
    assert encoder.feature_dim(Reading()) == 48


def test_clip_s_projected_features():
    model = clip_plain_gelu()
    encoder = loaded(model)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = model(normalised(encoder, images))
        seen = encoder.observe(images, (4, 4), Reading("cls", features=1, projected=True))
        patches = model.vision_model.post_layernorm(found.last_hidden_state[:, 1:])
        close(seen.features, model.visual_projection(patches))
        close(encoder.vit.projection(encoder.features(images, "cls")), found.image_embeds)
        raw = encoder.observe(images, (4, 4), Reading("cls", features=1)).features
        close(raw, F.layer_norm(found.last_hidden_state[:, 1:], (48,), eps=1e-6))
    assert encoder.feature_dim(Reading(projected=True)) == 24


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
    encoder.observe(images, (4, 4), Reading("cls", -1, features=0))
    assert calls == [0, 1], "of the last block the row alone"
    calls.clear()
    encoder.observe(images, (4, 4), Reading("cls", 0, features=0))
    assert calls == []
    encoder.observe(images, (4, 4), Reading("cls", -1, features=1))
    assert calls == [0, 1, 2]


# Other projects' names for the same weights


def split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> timm's: prefix and places apart again, patches as a convolution."""
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


def same(first: ForeignEncoder, second: ForeignEncoder, query: str = "cls") -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        a, b = (e.observe(images, (3, 5), Reading(query)) for e in (first, second))
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
    told = {
        "architecture": "vit_tiny",
        "num_attention_heads": 4,
        "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3},
    }
    (folder / "config.json").write_text(json.dumps(told))
    encoder = load_encoder(folder)
    assert (encoder.spec.mean, encoder.spec.std, encoder.spec.antialias) == ((0.1,) * 3, (0.2,) * 3, True)
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
        if expected.spec.num_prefix > 1:
            state["register_tokens"] = expected.vit.prefix[None, 1:]
        if expected.spec.is_gated:
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
        state = {
            n: t for n, t in expected.vit.state_dict().items() if n not in ("prefix", "embed.weight", "embed.bias")
        }
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
        if expected.spec.is_gated:
            for n in [n for n in state if "mlp.fc1" in n]:
                state[n.replace("fc1", "w1")], state[n.replace("fc1", "w2")] = (
                    t.clone() for t in state.pop(n).chunk(2)
                )
            state = {n.replace("mlp.fc2", "mlp.w3"): t for n, t in state.items()}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"num_attention_heads": 4}')
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / folder / "model.safetensors")
        encoder = load_encoder(tmp_path / folder)
        assert encoder.spec.theta == pytest.approx(100)
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
    for part in ("weight", "bias"):
        names[f"visual.ln_pre.{part}"] = state[f"vision_model.pre_layrnorm.{part}"]
        names[f"visual.ln_post.{part}"] = state[f"vision_model.post_layernorm.{part}"]
        for i in range(3):
            own, layer = f"visual.transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
            names[f"{own}.attn.in_proj_{part}"] = torch.cat(
                [state[f"{layer}.self_attn.{p}_proj.{part}"] for p in ("q", "k", "v")]
            )
            names[f"{own}.attn.out_proj.{part}"] = state[f"{layer}.self_attn.out_proj.{part}"]
            for theirs, hf in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                names[f"{own}.{theirs}.{part}"] = state[f"{layer}.{hf}.{part}"]
            for theirs, hf in (("c_fc", "fc1"), ("c_proj", "fc2")):
                names[f"{own}.mlp.{theirs}.{part}"] = state[f"{layer}.mlp.{hf}.{part}"]
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
        told = {
            "model_cfg": {"vision_cfg": {"head_width": 64}},
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(told))
        encoder = load_encoder(folder)
        assert encoder.spec.mean == (0.5,) * 3
        encoder.mean.copy_(expected.mean)
        encoder.std.copy_(expected.std)
    assert expected.spec.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert encoder.spec.activation == activation.replace("_", "-")
    same(encoder, expected)
    images = torch.rand(1, 3, 32, 32)
    close(*(e.observe(images, (4, 4), Reading(None, projected=True)).features for e in (encoder, expected)))


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
        seen = encoder.observe(images, (14, 14), Reading("cls"))
    close(seen.features, expected[:, 1:])
    close(seen.attention, attentions[-1][:, :, 0, 1:])


@pytest.mark.parametrize(
    ("make", "mean"),
    [(clip, 0.4815), (dinov2, 0.485), (dinov3, 0.485), (vit, 0.5), (deit, 0.485)],
    ids=["clip", "dinov2", "dinov3", "vit", "deit"],
)
def test_each_has_its_own_normalisation(make: Callable[[], Any], mean: float, tmp_path: Path):
    make().save_pretrained(tmp_path)
    assert load_encoder(tmp_path).spec.mean[0] == pytest.approx(mean, abs=1e-4)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}')
    spec = load_encoder(tmp_path).spec
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert load_encoder(tmp_path / "model.safetensors").spec == spec, "the same file by its own name"
