"""Addresses of encoders: whatever is there is read, as ours or as others', or is refused in one clear way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import unveil
from public_models import close
from test_public_vits import CROSS, Hostile, public_names
from test_teachers_frozen import public_file
from tiny import build
from tiny_runs import write_images, write_recipe
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder, pooled
from unveil.modeling.public_vits import PublicViT, describe, is_public_vit, load_encoder
from unveil.modeling.teachers import load_teacher
from unveil.modeling.types import IMAGENET_MEAN, RGB, Batch, FeatureSpec, Modality
from unveil.runs.checkpoint import save

HEADS = '{"num_attention_heads": 2}'


def folder_of(path: Path, state: dict[str, Tensor]) -> Path:
    """A folder that says how many heads there are: widths of tests are nobody's."""
    path.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    (path / "config.json").write_text(HEADS)
    return path


# Families that our own encoder can be, too


@pytest.mark.parametrize("options", [{}, CROSS], ids=["mae", "crossmae"])
def test_mae_and_crossmae_give_our_own_encoder_s_features(options: dict, tmp_path: Path):
    model = build(image_size=(16, 16), **options)
    theirs = load_encoder(folder_of(tmp_path / "mae", public_names(model)))
    theirs.mean.fill_(0.4)
    theirs.std.fill_(0.3)
    assert theirs.config.final_norm == ("none" if options else "all"), "CrossMAE has no final norm"
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        close(theirs.features(images, "both"), pooled(model.encoder, images, "both"))


@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_our_own_runs(size: tuple[int, int], tmp_path: Path):
    """As a folder, and as the weight file in it: the same as the encoder itself, at any size."""
    modality = Modality("rgb", 5, (0.3,) * 5, (0.2,) * 5)
    encoder = Encoder([modality], (16,), 4, 24, 2, 2)
    facts = {
        "modality": {"name": "rgb", "channels": 5, "mean": modality.mean, "std": modality.std},
        "options": {"image_size": [16]},
        "model": {"heads": 2},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(facts))
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    saved = save(
        run,
        3,
        {**weights, "decoders.pixels.mask_token": torch.zeros(4)},
        {"a:step": torch.ones(1)},
        {},
        {"unveil": json.dumps(facts)},
    )
    images = torch.rand(2, 5, *size)
    batch = Batch({"rgb": images}, torch.zeros(2, dtype=torch.int64), torch.zeros(()))
    grid = (size[0] // 4, size[1] // 4)
    for address in (run, saved / "model.safetensors"):
        with torch.no_grad():
            expected = encoder.observe(encoder.embed(batch), FeatureSpec("cls"))
            observation = load_encoder(address).observe(images, grid, FeatureSpec("cls"))
        close(observation.features, expected.features)
        close(observation.attention, expected.attention)
    save_file(weights, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"without what its run\.json says; give the run folder"):
        load_encoder(tmp_path / "bare.safetensors")


# unveil.load, embed, evaluate


def test_a_public_vit_is_loaded_embedded_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    file = str(public_file(Path("vit.safetensors")))
    images = write_images(Path("images"), 24)
    encoder = unveil.load(file, pool="both", device="cpu")
    assert isinstance(encoder, PublicViT)
    assert encoder((torch.rand(2, 3, 16, 16) * 255).to(torch.uint8)).shape == (2, 128)
    with pytest.raises(ValueError, match="images are B x 3 x H x W"):
        encoder(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="15 x 16 are not divided by this encoder's patches of 8"):
        encoder(torch.rand(2, 3, 15, 16))
    path = unveil.embed(file, data=str(images), device="cpu")
    assert np.load(path)["features"].shape == (24, 64)
    results = unveil.evaluate(file, data=str(images), protocol=("knn",), device="cpu")
    assert set(results[0].baselines) == {"pixels", "untrained"}
    assert "kept in runs/vit/eval/knn.json" in capsys.readouterr().err
    assert json.loads(Path("runs/vit/eval/knn.json").read_text())["protocol"] == "knn"


def test_a_folder_initialises_a_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    """`--init-from` takes transformers' layout, too."""
    images, file = write_images(tmp_path / "images"), write_recipe(tmp_path)
    state = {name: tensor for name, tensor in public_names(build(image_size=(16, 16))).items() if "decoder" not in name}
    grown = {n: t.repeat_interleave(1, 0)[:16] if t.shape[:1] == (24,) else t for n, t in state.items()}
    folder = folder_of(tmp_path / "vit_mae", {n: t for n, t in grown.items() if n in ("cls_token",)})
    save_file({"blocks.0.norm1.weight": torch.full((16,), 3.0)}, folder / "model.safetensors")
    run = unveil.pretrain(
        file, data=str(images), out=str(tmp_path / "run"), init_from=str(folder), device="cpu", epochs=1.0, paper=True,
        workers=1, allow_missing=True,
    )  # fmt: skip
    assert "1 tensors loaded" in capsys.readouterr().err
    loaded = unveil.load(run, device="cpu")
    assert isinstance(loaded, ImageEncoder)
    assert loaded.encoder.blocks[0].norm1.weight.mean() > 2


# What is not there, or not what it should be


def test_which_addresses_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text("{}")
    public_file(Path("vit.safetensors"))
    folder_of(Path("hf"), {"a": torch.zeros(1)})
    assert [is_public_vit(a) for a in ("vit.safetensors", "hf", "openai/clip-vit-base-patch16")] == [True] * 3
    assert [is_public_vit(a) for a in ("runs/a", "runs/b", "nothing", "org/vit.pth", "a/b/c", "runs")] == [False] * 6


def test_nothing_there(tmp_path: Path):
    for address in ("nothing", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no weight file at"):
            load_encoder(address)
    with pytest.raises(FileNotFoundError, match=r"has no weights: none of model\.safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_a_hub_name_without_network(environment: dict[str, str], tmp_path: Path):
    pytest.importorskip("huggingface_hub", reason="names on the hub need huggingface_hub")
    code = "from unveil.foreign import load_encoder; load_encoder('openai/clip-vit-base-patch16')"
    stderr = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(
        "OSError: there is no file or folder openai/clip-vit-base-patch16, and the hub gave no model"
    )
    assert "check the name and the network" in last


def test_a_hub_name_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"names on the hub need a package: pip install 'unveil\[hub\]'"):
        load_encoder("openai/clip-vit-base-patch16")


def test_a_hub_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Safetensors where there are any, else a pickle."""
    hub = pytest.importorskip("huggingface_hub", reason="names on the hub need huggingface_hub")
    expected = load_encoder(public_file(tmp_path / "w.safetensors"))
    folder = tmp_path / "cache"
    names = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        names.append(name)
        folder.mkdir(exist_ok=True)
        if "pytorch_model.bin" in allow_patterns:
            torch.save(load_file(tmp_path / "w.safetensors"), folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert load_encoder("some-org/some-vit").config == expected.config
    assert names == ["some-org/some-vit"] * 2


def test_a_teacher_with_code_in_it_is_refused_and_runs_nothing(tmp_path: Path):
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    torch.save({"model": {"blocks.0.norm1.weight": torch.zeros(1)}, "extra": Hostile(victim)}, path)
    with pytest.raises(ValueError, match="was refused: it is damaged or holds more than tensors"):
        load_teacher(str(path), Encoder([RGB], (16,), 4, 24, 2, 2))
    assert not victim.exists()


def test_what_is_no_vit(tmp_path: Path):
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(9)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"holds no ViT that is known here; its tensors are conv1\.weight, fc\.bias"):
        load_encoder(tmp_path / "resnet.safetensors")
    state = load_file(public_file(tmp_path / "w.safetensors"))
    for shape, reason in (((64, 3, 8, 4), "no squares of an image"), ((64, 3, 2, 8, 8), "no squares of an image")):
        save_file({**state, "patch_embed.proj.weight": torch.zeros(shape)}, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match=f"cannot be read as ViT: its patches are {reason}"):
            load_encoder(tmp_path / "odd.safetensors")
    save_file({**state, "pos_embed": torch.zeros(1, 8, 64)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="its table of 8 positions is that of no square grid with 1 tokens before"):
        load_encoder(tmp_path / "odd.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_act": "mish"}')
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the activation 'mish' is not known"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_encoder(tmp_path)


def test_tensors_that_are_missing_or_left_over_are_an_error_that_names_them(tmp_path: Path):
    state = load_file(public_file(tmp_path / "w.safetensors"))  # 30 tensors of ours
    most = {name: tensor for name, tensor in state.items() if name != "blocks.0.norm1.weight"}
    save_file(most, tmp_path / "most.safetensors")
    with pytest.raises(ValueError, match=r"has 29 of that encoder's 30 tensors.* Missing: .*norm1\.weight"):
        load_encoder(tmp_path / "most.safetensors")
    for name in ("junk", "blocks.0.attn.q_norm.weight", "rope.freqs", "blocks.0.attn.gate", "blocks.0.mlp.norm.weight"):
        save_file(state | {name: torch.zeros(1)}, tmp_path / "more.safetensors")
        for read in (load_encoder, unveil.load, lambda path: load_teacher(path, Encoder([RGB], (16,), 4, 24, 2, 2))):
            with pytest.raises(ValueError, match=rf"Left over: {re.escape(name)}\. "):
                read(str(tmp_path / "more.safetensors"))


def layer_scaled(path: Path, scale: float, **others: Tensor) -> Path:
    """A ViT with the layer scale, the biases of queries and values of BEiT, under timm's names."""
    state = load_file(public_file(path))
    for i in range(2):
        bias = state.pop(f"blocks.{i}.attn.qkv.bias")
        state |= {f"blocks.{i}.attn.{letter}_bias": scale * bias[:64] for letter in "qv"}
        state |= {f"blocks.{i}.gamma_{k}": torch.full((64,), scale) for k in (1, 2)}
    state |= others
    save_file(state, path)
    return path


def test_layer_scale_and_separate_biases_count(tmp_path: Path):
    """Under timm's names of BEiT, EVA and DINOv3, with a config.json that tells them from rotary ViTs."""
    features = []
    images = torch.rand(1, 3, 16, 16)
    for name, scale in (("a", 0.1), ("b", 3.0)):
        file = layer_scaled(tmp_path / f"{name}.safetensors", scale)
        with pytest.raises(ValueError, match=r"give its config\.json"):
            load_encoder(file)
        encoder = load_encoder(folder_of(tmp_path / name, load_file(file)))
        assert encoder.config.has_layer_scale
        block = encoder.blocks[0]
        state = load_file(file)
        assert torch.equal(block.ls1.state_dict()["gamma"], state["blocks.0.gamma_1"])
        bias = state["blocks.0.attn.q_bias"]
        expected = torch.cat([bias, torch.zeros(64), state["blocks.0.attn.v_bias"]])
        assert torch.equal(block.attn.qkv.bias, expected)
        features.append(encoder(images))
    assert not torch.allclose(*features)


def test_positions_that_are_not_read_are_named(tmp_path: Path):
    """BEiT's relative positions, EVA-02's and Perception Encoder's rotations, whose tensors alone do not show them."""
    state = load_file(layer_scaled(tmp_path / "w.safetensors", 1.0))
    table = state.pop("pos_embed")
    relative = {f"blocks.{i}.attn.relative_position_bias_table": torch.zeros(12, 1) for i in range(2)}
    eva = {n: t for n, t in state.items() if "gamma" not in n and "fc2.w" not in n}
    eva |= {"pos_embed": table} | {f"blocks.{i}.mlp.fc2.weight": torch.zeros(64, 64) for i in range(2)}
    plain = load_file(public_file(tmp_path / "w.safetensors"))
    pooled_by_attention = plain | {f"norm_pre.{n}": torch.ones(64) for n in ("weight", "bias")}
    pooled_by_attention |= {"attn_pool.latent": torch.zeros(1, 1, 64)}
    for name, weights, reason in (
        ("relative", state | relative, "relative_position_bias_table"),
        ("no-table", state, "no table of positions"),
        ("eva", eva, r"EVA-02.*q_bias"),
        ("pe", pooled_by_attention, r"Perception Encoder.*attn_pool\.latent"),
        ("relative-plain", plain | relative, r"Left over: blocks\.0\.attn\.relative_position_bias_table"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_encoder(folder_of(tmp_path / name, weights))
    folder = folder_of(tmp_path / "named", plain)
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_rope_ape_224"}')
    with pytest.raises(ValueError, match="timm's vit_base_patch16_rope_ape_224"):
        load_encoder(folder)


def test_a_description_is_that_of_the_encoder(tmp_path: Path):
    path = public_file(tmp_path / "w.safetensors")
    assert describe(path) == load_encoder(path).config


def test_patches_of_a_convolutional_stem_are_refused_by_name(tmp_path: Path):
    """timm's hybrids, whose projection reads a map of a ResNet, not pixels."""
    state = load_file(public_file(tmp_path / "w.safetensors")) | {
        "patch_embed.backbone.stem.conv.weight": torch.ones(1)
    }
    with pytest.raises(ValueError, match=r"more than one projection.*patch_embed\.backbone\.stem"):
        load_encoder(folder_of(tmp_path / "hybrid", state))


def test_a_file_alone_tells_what_is_assumed(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Heads, activation and statistics are in no tensor; attention pooling alone is SigLIP's, of images in [-1, 1]."""
    state = load_file(public_file(tmp_path / "w.safetensors"))
    load_encoder(tmp_path / "w.safetensors")
    assert "no config.json is beside it" in capsys.readouterr().err
    folder = folder_of(tmp_path / "described", state)
    (folder / "config.json").write_text('{"num_attention_heads": 1}')
    assert load_encoder(folder).config.mean == IMAGENET_MEAN
    assert "no config.json" not in capsys.readouterr().err
    pooled = {name: tensor for name, tensor in state.items() if name not in ("cls_token", "pos_embed")}
    pooled |= {"pos_embed": state["pos_embed"][:, 1:], "attn_pool.latent": torch.zeros(1, 1, 64)}
    assert load_encoder(folder_of(tmp_path / "siglip", pooled)).config.mean == (0.5, 0.5, 0.5)
