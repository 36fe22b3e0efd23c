"""Families of public ViTs: each reader knows the names of one, and gives the weights under timm's names.

A reader returns None for weights of another family; `FAMILIES` has the readers in the order in which they are tried.
The mean and std of `Traits` are those that a family normalises images by; files beside the weights replace them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch

from ..types import IMAGENET_MEAN, IMAGENET_STD
from .key_maps import OPENAI, TRANSFORMERS, WRAPPERS, rename
from .spec_from_weights import UNVEIL, Traits, activation_of
from .weight_files import StateDict, WeightFiles

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_ADAPTER = "encoder.adapters."
_MULTIMAE = ((r"^encoder\.(\d+)\.", r"blocks.\1."), (r"^input_adapters\.rgb\.proj\.", "patch_embed.proj."))
_CHUNKS = ((r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),)  # DINOv2's blocks of a distributed run lie in groups
_HUGE = 1280, 20  # DINOv3's H+ has heads of 64 channels, where other ViTs of its width have 16


def read_unveil(files: WeightFiles) -> tuple[StateDict, Traits] | None:
    """The encoder of an unveil run or of its `model.safetensors`, which carries the metadata of its run.

    Raises ValueError for a checkpoint that does not say how its images were normalised.
    """
    if not any(name.startswith(_ADAPTER) for name in files.state):
        return None

    run = files.config.get("unveil", {})
    known = [run["modality"]] if "modality" in run else [d["modality"] for d in run.get("modalities", ())]
    continuous = [m for m in known if m.get("kind", "continuous") == "continuous"]
    images = [m for m in continuous if f"{_ADAPTER}{m['name']}.proj.weight" in files.state]
    if not images:
        raise ValueError("these are weights of an unveil run without what its run.json says; give the run folder")
    modality = next((m for m in images if m["name"] == "rgb"), images[0])
    projection, channels = f"{_ADAPTER}{modality['name']}.proj", modality["channels"]
    weight = files.state[f"{projection}.weight"]
    patch = math.isqrt(weight.shape[1] // channels)
    size = run.get("dials", {}).get("image_size", (224,))
    state = {
        "patch_embed.proj.weight": weight.unflatten(1, (patch, patch, channels)).permute(0, 3, 1, 2),
        "patch_embed.proj.bias": files.state[f"{projection}.bias"],
        "cls_token": files.state["encoder.prefix"],
    }
    vit = {n: tensor for n, tensor in files.state.items() if n.startswith(("encoder.blocks.", "encoder.norm."))}
    state |= rename(vit, ((r"^encoder\.", ""), (r"\.mlp\.0\.", ".mlp.fc1."), (r"\.mlp\.2\.", ".mlp.fc2.")))
    return state, Traits(
        UNVEIL,
        heads=run.get("model", {}).get("heads"),
        positions="sincos",
        grid=(size[0] // patch, size[-1] // patch),
        mean=tuple(modality["mean"]),
        std=tuple(modality["std"]),
    )


def read_multimae(files: WeightFiles) -> tuple[StateDict, Traits] | None:
    """MultiMAE's encoder (arXiv 2204.01678) as it reads RGB images alone.

    Its global token takes the class token's place: attention does not depend on their order. Its table of positions,
    D h w, is kept: it encodes rows first, MAE's columns. It has no final norm.
    """
    state = rename(files.state, WRAPPERS)
    if "input_adapters.rgb.proj.weight" not in state or "global_tokens" not in state:
        return None
    others = re.compile(r"(output|input)_adapters\.(?!rgb\.)")
    state = rename({name: tensor for name, tensor in state.items() if not others.match(name)}, _MULTIMAE)
    state["cls_token"] = state.pop("global_tokens")
    state["pos_embed"] = state.pop("input_adapters.rgb.pos_emb").flatten(2).transpose(1, 2)
    return state, Traits("MultiMAE", heads=files.config.get("num_attention_heads"))


def read_clip(files: WeightFiles) -> tuple[StateDict, Traits] | None:
    """CLIP's vision tower by OpenAI's, OpenCLIP's and transformers' names.

    Its final norm is applied to the class token, which the projection reads. Without a configuration the activation is
    OpenAI's QuickGELU: the tensors do not show whether an OpenCLIP model has the plain one.
    """
    if "visual.class_embedding" in files.state:
        tower = {name: tensor for name, tensor in files.state.items() if name.startswith("visual.")}
        state = rename(tower, OPENAI)
        if "proj" in state:
            state["projection.weight"] = state.pop("proj").T
        model = files.config.get("model_cfg", {})  # OpenCLIP's
        head = model.get("vision_cfg", {}).get("head_width")
        heads = state["cls_token"].numel() // head if head else None
        activation = activation_of("quick_gelu" if not model or model.get("quick_gelu", False) else "gelu")
        return state, Traits("CLIP", 1e-5, activation, heads, "cls", mean=CLIP_MEAN, std=CLIP_STD)
    names = ("vision_model.embeddings.class_embedding", "embeddings.class_embedding")
    if not any(name in files.state for name in names):
        return None
    config = files.config.get("vision_config", files.config)
    vision = ("vision_model.", "visual_projection.") if names[0] in files.state else ""  # beside a text tower, or alone
    tower = {name: tensor for name, tensor in files.state.items() if name.startswith(vision)}
    tower.pop("vision_model.embeddings.position_ids", None)
    return rename(tower, TRANSFORMERS), Traits(
        "CLIP",
        config.get("layer_norm_eps", 1e-5),
        activation_of(config.get("hidden_act", "quick_gelu")),
        config.get("num_attention_heads"),
        "cls",
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def read_dino(files: WeightFiles) -> tuple[StateDict, Traits] | None:
    """DINOv2 and DINOv3 by their public names and transformers'. DINO itself is a plain ViT.

    They are recognised by their layer scale, DINOv3 by the lack of a table of positions.
    """
    state = rename(files.state, (*WRAPPERS, *TRANSFORMERS, *_CHUNKS))
    config = files.config
    if "blocks.0.ls1.gamma" not in state:
        return None
    heads = config.get("num_attention_heads")
    is_gated = any(f"blocks.0.mlp.{part}.weight" in state for part in ("gate", "w1", "w12", "weights_in"))
    if "pos_embed" in state:
        is_gated = is_gated or config.get("use_swiglu_ffn", False)
        has_registers = any(name in state for name in ("register_tokens", "storage_tokens", "reg_token"))
        activation = activation_of("silu" if is_gated else "gelu")
        return state, Traits("DINOv2", config.get("layer_norm_eps", 1e-6), activation, heads, antialias=has_registers)
    width = state["cls_token"].shape[-1]
    periods = state.pop("rope_embed.periods", None)
    theta = config.get("rope_theta", 100.0)
    if periods is not None:  # theta to the powers 0, 1/n, ... (n-1)/n
        theta = float(periods[-1].double() ** (len(periods) / (len(periods) - 1)))
    size = config.get("image_size", 224)
    return _without_key_bias(state), Traits(
        "DINOv3",
        config.get("layer_norm_eps", 1e-5),
        activation_of(config.get("hidden_act", "silu" if is_gated else "gelu")),
        heads or (_HUGE[1] if width == _HUGE[0] else None),
        positions="rotary",
        image_size=size if isinstance(size, int) else size[0],
        theta=theta,
    )


def _without_key_bias(state: StateDict) -> StateDict:
    """DINOv3's keys have no bias: the public file has one, of any values, and a mask that zeroes it."""
    masks = {name for name in state if re.search(r"qkv\.bias_mask$", name)}
    for name in (mask.removesuffix("_mask") for mask in masks):
        query, _, value = state[name].chunk(3)
        state[name] = torch.cat([query, torch.zeros_like(query), value])
    return {name: tensor for name, tensor in state.items() if name not in masks}


def read_timm(files: WeightFiles) -> tuple[StateDict, Traits] | None:
    """Plain ViTs: supervised ViT and DeiT, MAE, CrossMAE and DINO, by their public, timm's and transformers' names.

    Without files beside them, transformers' ViT has its images normalised to [-1, 1], as it was trained, and all
    others by ImageNet's statistics.
    """
    state = rename(files.state, (*WRAPPERS, *TRANSFORMERS))
    if "patch_embed.proj.weight" not in state:
        return None
    config = files.config
    is_clip = "norm_pre.weight" in state  # as timm saves it
    is_quick = is_clip and "quickgelu" in config.get("architecture", "")
    is_half = config.get("model_type") == "vit"
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (_HALF, _HALF) if is_half else (IMAGENET_MEAN, IMAGENET_STD)
    return state, Traits(
        "ViT",
        config.get("layer_norm_eps", 1e-5 if is_clip else 1e-6),
        activation_of(config.get("hidden_act", "quick_gelu" if is_quick else "gelu")),
        config.get("num_attention_heads"),
        antialias="architecture" in config,
        mean=mean,
        std=std,
    )


Reader = Callable[[WeightFiles], tuple[StateDict, Traits] | None]
FAMILIES: tuple[Reader, ...] = (read_unveil, read_multimae, read_clip, read_dino, read_timm)
