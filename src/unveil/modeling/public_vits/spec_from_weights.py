"""A `ViTConfig` and the weights of its ViT from tensors under timm's names and the `Traits` of their family."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..types import IMAGENET_MEAN, IMAGENET_STD
from .key_maps import fuse, rename
from .vit import Activation, ViTConfig
from .weight_files import StateDict, WeightFiles, summarise

UNVEIL = "unveil"  # the family of own runs
HEADS = {  # by width, of the ViTs that are public; others have one for every 64 channels
    192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32,
}  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {  # as configurations name them
    "gelu": "gelu", "quick_gelu": "quick-gelu", "silu": "silu", "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
}  # fmt: skip
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")  # DINOv2, DINOv3, timm


@dataclass(frozen=True)
class Traits:
    """What the tensors of a family's checkpoint do not show; None for what is inferred from them."""

    family: str
    eps: float = 1e-6
    activation: Activation = "gelu"
    heads: int | None = None
    final_norm: Literal["all", "cls"] = "all"
    positions: Literal["table", "rotary", "sincos"] = "table"
    grid: tuple[int, int] | None = None
    image_size: int = 224  # in training, of a rotary encoder
    antialias: bool = False
    theta: float = 100.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def activation_of(name: str) -> Activation:
    """An activation by its name in a configuration. Raises ValueError for one that no ViT here has."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not known; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def with_statistics(traits: Traits, files: WeightFiles) -> Traits:
    """The mean and std that transformers, timm or OpenCLIP saved beside public weights, where they did."""
    saved: Mapping[str, Any] = files.preprocessing
    if traits.family == UNVEIL:
        return traits
    if "image_mean" in saved and "image_std" in saved:
        return replace(traits, mean=tuple(saved["image_mean"]), std=tuple(saved["image_std"]))
    saved = files.config.get("pretrained_cfg") or files.config.get("preprocess_cfg") or {}
    return replace(traits, mean=tuple(saved.get("mean", traits.mean)), std=tuple(saved.get("std", traits.std)))


def assemble(state: StateDict, traits: Traits) -> tuple[ViTConfig, StateDict]:
    """The description of a checkpoint under timm's names, and its tensors under those of our ViT.

    Raises ValueError for one that is no plain ViT.
    """
    state = _one_mlp(fuse(state))
    weight = state.get("patch_embed.proj.weight")
    indices = [int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
    blocks = max(indices, default=-1) + 1
    hidden = state.get("blocks.0.mlp.fc2.weight")
    if weight is None or hidden is None or not blocks:
        raise ValueError(f"this is no plain ViT: it has {summarise(state)}")
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"its patches are no squares of an image: their projection is {tuple(weight.shape)}")
    width, channels, patch, _ = weight.shape
    heads = traits.heads or HEADS.get(width, width // 64)
    if not heads:
        raise ValueError(f"how many heads share its width of {width} is not known; give its folder with config.json")
    prefix, table = _tokens(state, traits, width)
    grid = traits.grid or (traits.image_size // patch,) * 2
    taken = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "dist_token", "pos_embed", *_REGISTERS}
    others = {name: tensor for name, tensor in state.items() if name not in taken}
    ours = rename(others, ((r"\.mlp\.fc1\.", ".mlp.0."), (r"\.mlp\.fc2\.", ".mlp.2.")))
    ours |= {"embed.weight": weight.permute(0, 2, 3, 1).flatten(1), "prefix": prefix}
    ours["embed.bias"] = state.get("patch_embed.proj.bias", torch.zeros(width))
    for block in range(blocks):
        ours.setdefault(f"blocks.{block}.attn.qkv.bias", torch.zeros(3 * width))
    if table is not None:
        ours["table"], grid = table, (table.shape[0], table.shape[1])
    projection = state.get("projection.weight")
    config = ViTConfig(
        width=width,
        depth=blocks,
        heads=heads,
        patch=patch,
        hidden=hidden.shape[1],
        grid=grid,
        channels=channels,
        num_prefix=len(prefix),
        positions=traits.positions,
        activation=traits.activation,
        is_gated=len(state["blocks.0.mlp.fc1.weight"]) == 2 * hidden.shape[1],
        has_pre_norm="norm_pre.weight" in state,
        has_layer_scale="blocks.0.ls1.gamma" in state,
        final_norm=traits.final_norm if "norm.weight" in state else "none",
        projection=0 if projection is None else len(projection),
        eps=traits.eps,
        antialias=traits.antialias,
        theta=traits.theta,
        mean=traits.mean,
        std=traits.std,
    )
    return config, ours


def _one_mlp(state: StateDict) -> StateDict:
    """A gated MLP's two first projections as one, the gate before what it gates (DINOv2's w12, timm's packed fc1)."""
    joined: StateDict = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(blocks\.\d+\.mlp\.)(\w+)\.(weight|bias)", name)
        if not match:
            joined[name] = tensor
            continue
        block, part, kind = match.groups()
        if part == "w12":
            joined[f"{block}fc1.{kind}"] = tensor
        elif part == "w3":
            joined[f"{block}fc2.{kind}"] = tensor
        elif part in ("gate", "w1"):
            gated = state[f"{block}{'fc1' if part == 'gate' else 'w2'}.{kind}"]
            joined[f"{block}fc1.{kind}"] = torch.cat([tensor, gated])
        elif part != "w2" and not (part == "fc1" and f"{block}gate.{kind}" in state):
            joined[name] = tensor
    return joined


def _tokens(state: Mapping[str, Tensor], traits: Traits, width: int) -> tuple[Tensor, Tensor | None]:
    """Class, distillation and register tokens with their places added, R D; and the table of patches, h w D."""
    firsts = [state[name].reshape(-1, width) for name in ("cls_token", "dist_token") if name in state]
    registers = [state[name].reshape(-1, width) for name in _REGISTERS if name in state]
    prefix = torch.cat([*firsts, *registers, torch.zeros(0, width)]).float()
    if "pos_embed" not in state:
        return prefix, None
    places = state["pos_embed"].reshape(-1, width).float()
    num_firsts = sum(map(len, firsts))
    for extra in (num_firsts, 0, len(prefix)):  # tokens that have a place of their own
        side = math.isqrt(max(0, len(places) - extra))
        grid = traits.grid or (side, side)
        if grid[0] * grid[1] == len(places) - extra:
            prefix[:extra] += places[:extra]
            return prefix, places[extra:].unflatten(0, grid)
    raise ValueError(f"its table of {len(places)} positions is that of no square grid with {len(prefix)} tokens before")
