"""The families of public ViTs, recognised by the names of their weights.

A reader knows one family, gives the weights under timm's names, and returns None for those of another; `FAMILIES` has
the readers in the order in which they are tried. `assemble` makes a `ViTConfig` and the weights of its ViT of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..position_table import TABLE
from ..types import IMAGENET_MEAN, IMAGENET_STD
from .parameter_names import MLP, OPENAI, TRANSFORMERS, fuse, other_inputs, rename
from .vit import Activation, ViTConfig
from .weight_files import (
    StateDict,
    WeightFiles,
    saved_rectangle,
    summarise,
)

# The family, its weights under timm's names, and what those do not show: keyword arguments of `assemble`.
Recognised = tuple[str, StateDict, dict[str, Any]]

UNVEIL = "unveil"  # the family of own runs
HEADS = {  # by width, of the ViTs that are public; others have one for every 64 channels
    192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32,
}  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {  # as configurations name them
    "gelu": "gelu", "quick_gelu": "quick-gelu", "silu": "silu", "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
}  # fmt: skip
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")  # DINOv2, DINOv3, timm
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CLIP = {"eps": 1e-5, "final_norm": "cls", "mean": CLIP_MEAN, "std": CLIP_STD}
_HALF = (0.5, 0.5, 0.5)
_ADAPTER = "encoder.adapters."
_MULTIMAE = ((r"^encoder\.(\d+)\.", r"blocks.\1."), (r"^input_adapters\.rgb\.proj\.", "patch_embed.proj."))
_CHUNKS = ((r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),)  # DINOv2's blocks of a distributed run lie in groups
_SWIGLU = ((r"\.mlp\.(w12|w2)\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."), (r"\.mlp\.w1\.", ".mlp.gate."))  # DINOv2
_TANH = re.compile(r"(so400m_patch16|giantopt_patch16|base_patch32)_siglip|large_patch16_siglip(_gap)?_512")
_HUGE = 1280, 20  # DINOv3's H+ has heads of 64 channels, where other ViTs of its width have 16


def read_unveil(files: WeightFiles) -> Recognised | None:
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
    size = run.get("options", {}).get("image_size", (224,))
    state = {
        "patch_embed.proj.weight": weight.unflatten(1, (patch, patch, channels)).permute(0, 3, 1, 2),
        "patch_embed.proj.bias": files.state[f"{projection}.bias"],
        "cls_token": files.state["encoder.prefix"],
    }
    vit = {n: tensor for n, tensor in files.state.items() if n.startswith(("encoder.blocks.", "encoder.norm."))}
    state |= rename(vit, ((r"^encoder\.", ""), (r"\.mlp\.0\.", ".mlp.fc1."), (r"\.mlp\.2\.", ".mlp.fc2.")))
    options = {"heads": run.get("model", {}).get("heads"), "positions": "sincos"}
    if TABLE in files.state:
        state["pos_embed"] = files.state[TABLE].flatten(0, 1)
        options["positions"] = "table"
        size = [side * patch for side in files.state[TABLE].shape[:2]]
    options["activation"] = "silu" if _is_gated(state) else "gelu"
    options["resize_positions"] = run.get("options", {}).get("resize_positions", "interpolate")
    statistics = {"mean": tuple(modality["mean"]), "std": tuple(modality["std"])}
    return UNVEIL, state, {**options, **statistics, "grid": (size[0] // patch, size[-1] // patch)}


def read_multimae(files: WeightFiles) -> Recognised | None:
    """MultiMAE's encoder (arXiv 2204.01678): it reads RGB images, and depth and semantic classes beside them.

    Its global token takes the class token's place: attention does not depend on their order. Its table of positions,
    D h w, is kept: it encodes rows first, MAE's columns. It has no final norm.
    """
    state = files.state
    if "input_adapters.rgb.proj.weight" not in state or "global_tokens" not in state:
        return None
    others = re.compile(r"(output|input)_adapters\.(?!rgb\.)")
    adapters, options = other_inputs(state)
    state = rename({name: tensor for name, tensor in state.items() if not others.match(name)}, _MULTIMAE) | adapters
    state["cls_token"] = state.pop("global_tokens")
    state["pos_embed"] = state.pop("input_adapters.rgb.pos_emb").flatten(2).transpose(1, 2)
    return "MultiMAE", state, {"heads": files.config.get("num_attention_heads"), **options}


def read_clip(files: WeightFiles) -> Recognised | None:
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
        activation = "quick_gelu" if not model or model.get("quick_gelu", False) else "gelu"
        return "CLIP", state, {"heads": heads, "activation": activation, **_CLIP}
    names = ("vision_model.embeddings.class_embedding", "embeddings.class_embedding")
    if not any(name in files.state for name in names):
        return None
    tower, config = _tower(files)
    saved = _saved(config, eps=1e-5, activation="quick_gelu")
    return "CLIP", rename(tower, TRANSFORMERS), {**_CLIP, **saved}


def _tower(files: WeightFiles) -> tuple[StateDict, Mapping[str, Any]]:
    """transformers' vision tower and its configuration, out of a model that has a text tower too, or alone."""
    has_prefix = any(name.startswith("vision_model.") for name in files.state)
    own = ("vision_model.", "visual_projection.") if has_prefix else ""
    tower = {n: tensor for n, tensor in files.state.items() if n.startswith(own) and not n.endswith("position_ids")}
    return tower, files.config.get("vision_config", files.config)


def read_dino(files: WeightFiles) -> Recognised | None:
    """DINOv2 and DINOv3 by their public names and transformers'. DINO itself is a plain ViT.

    They are recognised by their layer scale, DINOv3 by the lack of a table of positions.
    """
    state = rename(files.state, (*TRANSFORMERS, *_CHUNKS))
    config = files.config
    if "blocks.0.ls1.gamma" not in state:
        return None
    if "pos_embed" in state:
        if not config and any(name.endswith(".gamma_1") for name in files.state):
            raise ValueError(
                "layer scale named gamma_1 comes with rotary positions in some models; give its config.json"
            )
        is_gated = _is_gated(state) or config.get("use_swiglu_ffn", False)
        options = _saved(config, eps=1e-6) | {"activation": "silu" if is_gated else "gelu"}
        antialias = "architecture" in config or any(name in state for name in _REGISTERS)
        return "DINOv2", state, options | {"antialias": antialias}
    if "rope_embed.periods" not in state and not any(name in state for name in _REGISTERS):
        others = summarise(name for name in state if re.search(r"rel|rope|freq|[qkv]_bias", name))
        raise ValueError(f"it has no table of positions, and is no DINOv3; other positions are not supported: {others}")
    periods = state.pop("rope_embed.periods", None)
    theta = config.get("rope_theta", 100.0)
    if periods is not None:  # theta to the powers 0, 1/n, ... (n-1)/n
        theta = float(periods[-1].double() ** (len(periods) / (len(periods) - 1)))
    size = config.get("image_size") or config.get("pretrained_cfg", {}).get("input_size", (224,))[-1]
    options = _saved(config, eps=1e-5, activation="silu" if _is_gated(state) else "gelu")
    if state["cls_token"].shape[-1] == _HUGE[0]:
        options["heads"] = options["heads"] or _HUGE[1]
    size = size if isinstance(size, int) else size[0]
    return "DINOv3", _without_key_bias(state), {**options, "positions": "rotary", "image_size": size, "theta": theta}


def _is_gated(state: StateDict) -> bool:
    """Whether the first layer of the MLP is two, of a gate and of what it gates, under any names or packed in one."""
    if any(f"blocks.0.mlp.{layer}.weight" in state for layer in ("gate", "w1", "w12", "weights_in")):
        return True
    first, second = (state.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    return first is not None and second is not None and len(first) == 2 * second.shape[1]


def _without_key_bias(state: StateDict) -> StateDict:
    """DINOv3's keys have no bias: the public file has one, of any values, and a mask that zeroes it."""
    masks = {name for name in state if re.search(r"qkv\.bias_mask$", name)}
    for name in (mask.removesuffix("_mask") for mask in masks):
        query, _, value = state[name].chunk(3)
        state[name] = torch.cat([query, torch.zeros_like(query), value])
    return {name: tensor for name, tensor in state.items() if name not in masks}


def read_timm(files: WeightFiles) -> Recognised | None:
    """Plain ViTs: supervised ViT, DeiT, MAE, CrossMAE, DINO, SigLIP, by their public, timm's and transformers' names.

    Without files beside them, transformers' ViT and SigLIP have their images normalised to [-1, 1], as they were
    trained, and all others by ImageNet's statistics.
    """
    tower, config = _tower(files)
    state = rename(tower, TRANSFORMERS)
    if "patch_embed.proj.weight" not in state:
        return None
    is_siglip = any(name.endswith("embeddings.patch_embedding.weight") for name in tower)
    is_clip = "norm_pre.weight" in state  # as timm saves it
    is_quick = is_clip and "quickgelu" in config.get("architecture", "")
    is_half = is_siglip or "attn_pool.latent" in state or config.get("model_type") == "vit"
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (_HALF, _HALF) if is_half else (IMAGENET_MEAN, IMAGENET_STD)
    is_tanh = is_siglip or _TANH.search(config.get("architecture", "")) is not None
    options = _saved(config, 1e-5 if is_clip else 1e-6, "quick_gelu" if is_quick else "gelu_new" if is_tanh else "gelu")
    grid = saved_rectangle(config, state["patch_embed.proj.weight"].shape[-1])
    return "ViT", state, {**options, "grid": grid, "antialias": "architecture" in config, "mean": mean, "std": std}


def _saved(config: Mapping[str, Any], eps: float, activation: str = "gelu") -> dict[str, Any]:
    """What the configuration of transformers or timm says, with defaults for what it leaves out."""
    return {
        "heads": config.get("num_attention_heads") or (config.get("model_args") or {}).get("num_heads"),
        "eps": config.get("layer_norm_eps", eps),
        "activation": config.get("hidden_act", activation),
    }


def assemble(
    state: StateDict,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
    image_size: int = 224,
    activation: str = "gelu",
    final_norm: Literal["all", "cls"] = "all",
    **options: Any,
) -> tuple[ViTConfig, StateDict]:
    """The description of a checkpoint under timm's names, and its tensors under those of our ViT.

    `heads` and `grid` are inferred by default, the grid of a rotary encoder from the `image_size` of its training;
    `activation` is a configuration's name of it; `options` are fields of `ViTConfig`. Raises ValueError for a
    checkpoint that is no plain ViT, or an activation that no ViT here has.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"the activation {activation!r} is not known; there are {', '.join(_ACTIVATIONS)}")
    _refuse_hidden_rotations(state)
    state = _one_mlp(fuse(state))
    weight = state.get("patch_embed.proj.weight")
    indices = [int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
    blocks = max(indices, default=-1) + 1
    hidden = state.get("blocks.0.mlp.fc2.weight")
    if weight is None or hidden is None or not blocks:
        raise ValueError(f"this is no plain ViT: it has {summarise(state)}")
    if stem := [n for n in state if n.startswith("patch_embed.") and not n.startswith("patch_embed.proj.")]:
        raise ValueError(f"its patches are more than one projection of pixels; not supported: {summarise(stem)}")
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"its patches are no squares of an image: their projection is {tuple(weight.shape)}")
    width, channels, patch, _ = weight.shape
    heads = heads or HEADS.get(width, width // 64)
    if not heads:
        raise ValueError(
            f"how many heads share its width of {width} is not known; give its folder with config.json, or"
            " --heads to `unveil import`"
        )
    prefix, table = _tokens(state, grid, width)
    if table is not None:
        grid = table.shape[0], table.shape[1]
    taken = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "dist_token", "pos_embed", *_REGISTERS}
    ours = rename({name: tensor for name, tensor in state.items() if name not in taken}, MLP)
    ours |= {"embed.weight": weight.permute(0, 2, 3, 1).flatten(1), "prefix": prefix}
    if "patch_embed.proj.bias" in state or "norm_pre.weight" in state:  # CLIP has none
        ours["embed.bias"] = state.get("patch_embed.proj.bias", torch.zeros(width))
    biases = [f"blocks.{block}.attn.qkv.bias" for block in range(blocks)]
    ours |= {} if any(name in ours for name in biases) else dict.fromkeys(biases, torch.zeros(3 * width))  # all or none
    if table is not None:
        ours["table"] = table
    projection = state.get("projection.weight")
    config = ViTConfig(
        width=width,
        depth=blocks,
        heads=heads,
        patch=patch,
        hidden=hidden.shape[1],
        grid=grid or (image_size // patch, image_size // patch),
        channels=channels,
        num_prefix=len(prefix),
        has_class_token="cls_token" in state,
        activation=_ACTIVATIONS[activation],
        is_gated=len(state["blocks.0.mlp.fc1.weight"]) == 2 * hidden.shape[1],
        has_pre_norm="norm_pre.weight" in state,
        has_layer_scale="blocks.0.ls1.gamma" in state,
        final_norm=final_norm if "norm.weight" in state else "none",
        projection=0 if projection is None else len(projection),
        **options,
    )
    return config, ours


def _refuse_hidden_rotations(state: StateDict) -> None:
    """Raise ValueError for ViTs that turn queries and keys by angles which no file holds, beside a table of positions.

    They are known by what else is theirs alone: Perception Encoder (arXiv 2504.13181) by its first norm without a last
    or with attention pooling, EVA-02 (arXiv 2303.11331) by gated MLPs and keys without a bias.
    """
    has_pool = any(name.startswith("attn_pool.") for name in state)
    family = None
    if "norm_pre.weight" in state and (has_pool or "norm.weight" not in state):
        family = "Perception Encoder, or of CoCa"
    biased = {
        letter
        for letter in "qk"
        for end in (f"{letter}_bias", f"{letter}_proj.bias")
        if f"blocks.0.attn.{end}" in state
    }
    if biased == {"q"} and _is_gated(state) and "pos_embed" in state:
        family = "EVA-02"
    if family:
        raise ValueError(
            f"its tensors are those of {family}, whose rotary positions or pooling are not supported; left over:"
            f" {summarise(name for name in state if 'attn_pool' in name or name.endswith(('q_bias', 'q_proj.bias')))}"
        )


def _one_mlp(state: StateDict) -> StateDict:
    """A gated MLP's two first projections as one, the gate before what it gates (DINOv2's w12, timm's packed fc1)."""
    state = rename(state, _SWIGLU)
    for name in [name for name in state if ".mlp.gate." in name]:
        gated = name.replace(".gate.", ".fc1.")
        state[gated] = torch.cat([state.pop(name), state[gated]])
    return state


def _tokens(state: Mapping[str, Tensor], grid: tuple[int, int] | None, width: int) -> tuple[Tensor, Tensor | None]:
    """Class, distillation and register tokens with their places added, R D; and the table of patches, h w D."""
    names = ("cls_token", "dist_token", *_REGISTERS, "pos_embed")
    if wrong := [name for name in names if name in state and state[name].shape[-1] != width]:
        raise ValueError(f"its {', '.join(wrong)} have another width than its patches, {width}")
    firsts = [state[name].reshape(-1, width) for name in ("cls_token", "dist_token") if name in state]
    registers = [state[name].reshape(-1, width) for name in _REGISTERS if name in state]
    prefix = torch.cat([*firsts, *registers, torch.zeros(0, width)]).float()
    if "pos_embed" not in state:
        return prefix, None
    places = state["pos_embed"].reshape(-1, width).float()
    num_firsts = sum(map(len, firsts))
    for extra in (num_firsts, 0, len(prefix)):  # tokens that have a place of their own
        side = math.isqrt(max(0, len(places) - extra))
        rows, columns = grid or (side, side)
        if rows * columns == len(places) - extra:
            prefix[:extra] += places[:extra]
            return prefix, places[extra:].unflatten(0, (rows, columns))
    raise ValueError(f"its table of {len(places)} positions is that of no square grid with {len(prefix)} tokens before")


Reader = Callable[[WeightFiles], Recognised | None]
FAMILIES: tuple[Reader, ...] = (read_unveil, read_multimae, read_clip, read_dino, read_timm)
