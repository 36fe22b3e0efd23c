"""An encoder of a run in the layouts of timm and transformers: their parameter names and their configurations.

`parameter_names` reads what is written here: an import of an export gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..decoder import SelfDecoder
from ..encoder import Encoder
from ..layers import EPS
from ..masked_model import MaskedModel, Objective
from ..types import Modality
from .weight_files import StateDict

ARCHITECTURE = "vit_base_patch16_224"  # of timm; every size in it is overridden by `model_args`
_BLOCK = (  # of timm's names -> transformers' (ViT, ViTMAE), inside a block
    (r"^attn\.proj\.", "attention.output.dense."),
    (r"^mlp\.fc1\.", "intermediate.dense."),
    (r"^mlp\.fc2\.", "output.dense."),
    (r"^norm1\.", "layernorm_before."),
    (r"^norm2\.", "layernorm_after."),
)


def check_layout(encoder: Encoder, to: str = "timm") -> Modality:
    """The modality of an encoder that a project knows: of one map of pixels, normalised by fixed statistics.

    Raises ValueError for any other, and for parts that the project has no place for.
    """
    has = {"registers": len(encoder.prefix) > 1, "layer scale": encoder.layer_scale is not None}
    parts = [part for part, is_there in has.items() if is_there] if to == "transformers" else []
    if parts := parts + ["SwiGLU"] * (encoder.mlp == "swiglu"):
        where = "transformers' ViTModel" if to == "transformers" else "timm's config.json"
        other = "" if encoder.mlp == "swiglu" else "timm, "
        raise ValueError(f"{where} has no place for {' and '.join(parts)}; use --to {other}torch, onnx or safetensors")
    names = ", ".join(m.name for m in encoder.modalities)
    if len(encoder.modalities) > 1 or encoder.modalities[0].kind == "categorical":
        raise ValueError(f"this encoder reads {names}, ViTs of timm and transformers one image; use --to safetensors")
    modality = encoder.modalities[0]
    if modality.normalise != "fixed" or modality.stride != 1:
        raise ValueError(
            f"{names} are normalised sample by sample here, which neither timm nor transformers does; use --to torch,"
            " onnx or safetensors, which keep the normalisation"
        )
    return modality


def timm_weights(encoder: Encoder) -> StateDict:
    """The weights under the names of timm's `VisionTransformer`, with its table of positions.

    An encoder without a final norm gets one that changes nothing but mean and deviation, as its features are read.
    """
    modality = check_layout(encoder)
    own = {name: tensor.detach() for name, tensor in encoder.state_dict().items()}
    side = modality.side(encoder.patch)
    projection = own[f"adapters.{modality.name}.proj.weight"].unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
    state = {
        "cls_token": own["prefix"][None, :1],
        "pos_embed": _with_class_token(encoder.positions(encoder.grid).detach(), len(own["prefix"])),
        "patch_embed.proj.weight": projection.contiguous(),
        "patch_embed.proj.bias": own[f"adapters.{modality.name}.proj.bias"],
        "norm.weight": own.get("norm.weight", torch.ones(encoder.dim)),
        "norm.bias": own.get("norm.bias", torch.zeros(encoder.dim)),
    }
    if len(own["prefix"]) > 1:
        state["reg_token"] = own["prefix"][None, 1:]
    blocks = {n.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2."): t for n, t in own.items()}
    return state | {name: tensor for name, tensor in blocks.items() if name.startswith("blocks.")}


def timm_config(encoder: Encoder, licence: str | None) -> dict[str, Any]:
    """The `config.json` that `timm.create_model("local-dir:...", pretrained=True)` and a hub name read."""
    modality = check_layout(encoder)
    shape = {"img_size": list(encoder.image_size), "patch_size": encoder.patch, "in_chans": modality.channels}
    sizes: dict[str, Any] = {
        "embed_dim": encoder.dim,
        "depth": encoder.depth,
        "num_heads": encoder.blocks[0].attn.heads,
    }
    if len(encoder.prefix) > 1:
        sizes["reg_tokens"] = len(encoder.prefix) - 1
    if encoder.layer_scale is not None:
        sizes["init_values"] = encoder.layer_scale
    read = {"num_classes": 0, "global_pool": "avg", "fc_norm": False}
    pretrained = {
        "input_size": [modality.channels, *encoder.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 224 / 256,
        "crop_mode": "center",
        "mean": list(modality.mean),
        "std": list(modality.std),
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **({"license": licence} if licence else {}),
    }
    own = {"architecture": ARCHITECTURE, "num_features": encoder.dim, "model_args": {**shape, **sizes, **read}}
    return {**own, "num_classes": 0, "global_pool": "avg", "pretrained_cfg": pretrained}


def transformers_weights(encoder: Encoder) -> StateDict:
    """The weights under the names of transformers' `ViTModel`."""
    state: StateDict = {}
    for name, tensor in timm_weights(encoder).items():
        if match := re.match(r"blocks\.(\d+)\.(.*)", name):
            state |= _block(f"encoder.layer.{match[1]}.", match[2], tensor)
        elif name.startswith("norm."):
            state[name.replace("norm.", "layernorm.")] = tensor
        elif name == "pos_embed":
            state["embeddings.position_embeddings"] = tensor
        else:
            state["embeddings." + name.replace("patch_embed.proj.", "patch_embeddings.projection.")] = tensor
    return state


def transformers_config(encoder: Encoder) -> dict[str, Any]:
    """The `config.json` of transformers' `ViTModel`; images are normalised outside of it."""
    modality = check_layout(encoder, "transformers")
    height, width = encoder.image_size
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": encoder.dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.blocks[0].attn.heads,
        "intermediate_size": 4 * encoder.dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": EPS,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch,
        "num_channels": modality.channels,
        "qkv_bias": True,
    }


def processor_config(encoder: Encoder) -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers: the size, and the statistics that images are normalised by."""
    modality = check_layout(encoder)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": dict(zip(("height", "width"), encoder.image_size, strict=True)),
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(modality.mean),
        "image_std": list(modality.std),
    }


def vit_mae(model: MaskedModel) -> tuple[StateDict, dict[str, Any]]:
    """A masked autoencoder with its decoder as transformers' `ViTMAEForPreTraining`: weights and `config.json`.

    Raises ValueError for a model that is none: MAE's decoder of self-attention, pixels alone, one prefix token.
    """
    encoder, decoders, objectives = model.encoder, list(model.decoders.items()), list(model.objectives)
    decoder, objective = decoders[0][1], objectives[0]
    is_mae = isinstance(decoder, SelfDecoder) and decoder.blend is None and decoder.outputs == "predicted"
    if not (is_mae and len(decoders) == len(objectives) == 1 and isinstance(objective, Objective)):
        raise ValueError("only MAE's decoder has a place in ViTMAEForPreTraining; leave --decoder out for the encoder")
    if (
        isinstance(encoder.norm, nn.Identity)
        or objective.name != "pixels"
        or encoder.image_size[0] != encoder.image_size[1]
    ):
        raise ValueError("ViTMAEForPreTraining predicts pixels of square images; leave --decoder out for the encoder")
    assert isinstance(decoder, SelfDecoder)
    state = {f"vit.{name}": tensor for name, tensor in transformers_weights(encoder).items()}
    own = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    for name, tensor in own.items():
        if match := re.match(r"blocks\.(\d+)\.(.*)", name):
            inner = match[2].replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")
            state |= _block(f"decoder.decoder_layers.{match[1]}.", inner, tensor)
        elif name == "mask_token":
            state["decoder.mask_token"] = tensor.view(1, 1, -1)
        else:
            state[f"decoder.decoder_{name}"] = tensor
    dim = decoder.mask_token.shape[-1]
    state["decoder.decoder_pos_embed"] = _with_class_token(decoder.positions(encoder.grid), 1)
    state |= {f"decoder.decoder_pred.{n}": t.detach() for n, t in objective.head.state_dict().items()}
    config = transformers_config(encoder) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": dim,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": decoder.blocks[0].attn.heads,
        "decoder_intermediate_size": 4 * dim,
        "mask_ratio": 1 - model.masker.visible,
        "norm_pix_loss": bool(getattr(objective.target, "norm_pix", False)),
    }
    return state, config


def _block(prefix: str, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """One tensor of a block under transformers' names: queries, keys and values are three matrices there."""
    if match := re.match(r"attn\.qkv\.(weight|bias)", name):
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"{prefix}attention.attention.{part}.{match[1]}": x.contiguous() for part, x in parts}
    for pattern, new in _BLOCK:
        name = re.sub(pattern, new, name)
    return {prefix + name: tensor}


def _with_class_token(positions: Float[Tensor, "N D"], prefix: int) -> Float[Tensor, "1 K D"]:
    return torch.cat([positions.new_zeros(prefix, positions.shape[1]), positions])[None]
