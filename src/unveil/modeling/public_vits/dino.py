"""DINOv2 and DINOv3, by their public names and transformers'. DINO itself is a plain ViT."""

from __future__ import annotations

import re

import torch

from ..types import IMAGENET_MEAN, IMAGENET_STD
from .files import StateDict
from .key_maps import TRANSFORMERS, WRAPPERS, rename
from .locate import WeightFiles
from .spec_from_weights import Traits, activation_of, normalisation

_CHUNKS = ((r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),)  # blocks of a run on many machines lie in groups
_HUGE = 1280, 20  # DINOv3's H+ has heads of 64 channels, where other ViTs of its width have 16


def read(found: WeightFiles) -> tuple[StateDict, Traits] | None:
    """DINOv2's or DINOv3's weights under timm's names; None where the weights are neither.

    DINOv2 is told by its layer scale, DINOv3 by registers without a table of positions.
    """
    state = rename(found.state, (*WRAPPERS, *TRANSFORMERS, *_CHUNKS))
    config = found.config
    mean, std = normalisation(found, IMAGENET_MEAN, IMAGENET_STD)
    if "blocks.0.ls1.gamma" not in state:
        return None
    heads = config.get("num_attention_heads")
    is_gated = any(f"blocks.0.mlp.{part}.weight" in state for part in ("gate", "w1", "w12", "weights_in"))
    has_registers = any(name in state for name in ("register_tokens", "storage_tokens", "reg_token"))
    if "pos_embed" in state:
        is_gated = is_gated or config.get("use_swiglu_ffn", False)
        return state, Traits(
            "DINOv2",
            config.get("layer_norm_eps", 1e-6),
            "silu" if is_gated else "gelu",
            heads,
            antialias=has_registers,
            mean=mean,
            std=std,
        )
    width = state["cls_token"].shape[-1]
    periods = state.pop("rope_embed.periods", None)
    theta = config.get("rope_theta", 100.0)
    if periods is not None:  # theta to the powers 0, 1/n, ... (n-1)/n
        theta = float(periods[-1].double() ** (len(periods) / (len(periods) - 1)))
    size = config.get("image_size", 224)
    return _unmasked(state), Traits(
        "DINOv3",
        config.get("layer_norm_eps", 1e-5),
        activation_of(config.get("hidden_act", "silu" if is_gated else "gelu")),
        heads or (_HUGE[1] if width == _HUGE[0] else None),
        positions="rotary",
        image_size=size if isinstance(size, int) else size[0],
        theta=theta,
        mean=mean,
        std=std,
    )


def _unmasked(state: StateDict) -> StateDict:
    """DINOv3's keys have no bias: the public file has one with a mask over it, where it may hold anything."""
    unmasked: StateDict = {}
    for name, tensor in state.items():
        if name.endswith("qkv.bias") and f"{name}_mask" in state:
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, torch.zeros_like(query), value])
        if not re.search(r"qkv\.bias_mask$", name):
            unmasked[name] = tensor
    return unmasked
