"""timm's ViTs of random weights, saved as timm saves them: its features, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unveil.modeling.public_vits import load_encoder

timm = pytest.importorskip("timm", reason="parity is with timm's models")
PLAIN = (
    "vit_tiny_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3", "vit_small_patch14_reg4_dinov2", "vit_little_patch16_reg4_gap_256",
    "vit_base_patch32_clip_quickgelu_224", "vit_medium_patch16_gap_256",
)  # fmt: skip
OTHERS = (
    "beit_base_patch16_224", "eva02_tiny_patch14_224", "eva02_base_patch14_224", "vit_pe_core_base_patch16_224",
    "vit_base_patch16_rope_224", "vit_base_patch16_rope_ape_224", "vit_relpos_small_patch16_224", "cait_xxs24_224",
    "naflexvit_base_patch16_gap", "vit_small_patch16_18x2_224", "vit_dwee_patch16_reg1_gap_256",
    "beit3_base_patch16_224",
)  # fmt: skip


def saved(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {} if name.startswith("naflex") else {"depth": 2}
    model = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "qkv.weight" in key:
                parameter.mul_(8)
            if any(word in key for word in ("gamma", "bias", "relative", "pos_embed", "cls_token", "reg_token")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "model.safetensors")
    config = {key: model.pretrained_cfg[key] for key in ("mean", "std", "input_size")}
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": config}))
    return model


@pytest.mark.parametrize("name", PLAIN)
def test_plain_vits_give_timm_s_features(name: str, tmp_path: Path):
    model, encoder = saved(name, tmp_path), load_encoder(tmp_path)
    images = torch.rand(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        theirs, ours = model.forward_features(encoder.normalised(images)), encoder.vit(encoder.normalised(images))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused(name: str, tmp_path: Path):
    saved(name, tmp_path)
    with pytest.raises(ValueError, match=r"take its features with timm|cannot be read as|Left over|holds no ViT"):
        load_encoder(tmp_path)
