"""Small models of transformers with random weights, and what they make of images: the truth of parity tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.modeling.public_vits import PublicViT, load_encoder

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
    return shaken(transformers.Dinov2Model(transformers.Dinov2Config(**{**DINOV2, **EAGER, **options})))


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


def normalised(encoder: PublicViT, images: Tensor) -> Tensor:
    return (images - torch.tensor(encoder.config.mean)[:, None, None]) / torch.tensor(encoder.config.std)[:, None, None]


def theirs_on(model: Any, encoder: PublicViT, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The last map of transformers' model and the attention of all its layers."""
    inner = next((getattr(model, name) for name in ("vision_model", "vit") if hasattr(model, name)), model)
    resizes = not isinstance(model, (transformers.Dinov2Model, transformers.Dinov2WithRegistersModel)) and (
        type(model).__name__ != "DINOv3ViTModel"
    )
    options = {"interpolate_pos_encoding": True} if resizes else {}
    with torch.no_grad():
        result = inner(normalised(encoder, images), output_attentions=True, **options)
    return result.last_hidden_state, result.attentions


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def loaded(model: Any) -> PublicViT:
    """Through a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_encoder(folder)
