"""Parameter names of transformers and of OpenAI, mapped to those that most public ViTs use (timm's)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .weight_files import StateDict

Table = Sequence[tuple[str, str]]  # a pattern and what it becomes, tried in this order

WRAPPERS: Table = ((r"^(module\.|_orig_mod\.|backbone\.)+", ""),)  # of distributed, compiled and two-part models

TRANSFORMERS: Table = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|vision_model|model)\.", ""),  # a model under its task's head
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"(self_attn|attention)\.(q|k|v)_proj\.", r"attn.\2_proj."),
    (r"(self_attn|attention)\.(o|out)_proj\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
    (r"mlp\.(weights_in|up_proj)\.", "mlp.fc1."),
    (r"mlp\.(weights_out|down_proj)\.", "mlp.fc2."),
    (r"mlp\.gate_proj\.", "mlp.gate."),
    (r"(layernorm_before|layer_norm1)\.", "norm1."),
    (r"(layernorm_after|layer_norm2)\.", "norm2."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^(encoder\.layers?|layers?)\.", "blocks."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),  # spelled so
    (r"^embeddings\.(cls_token|class_embedding)", "cls_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.", "patch_embed.proj."),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.register_tokens", "register_tokens"),
    (r"^visual_projection\.", "projection."),
)

OPENAI: Table = (
    (r"^visual\.", ""),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"attn\.in_proj_", "attn.qkv."),
    (r"attn\.out_proj\.", "attn.proj."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.ls_(\d)\.gamma", r".ls\1.gamma"),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
)

MLP: Table = ((r"\.mlp\.fc1\.", ".mlp.0."), (r"\.mlp\.fc2\.", ".mlp.2."))  # timm's names to those of `layers.Mlp`

_TRIPLES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def new_name(name: str, table: Table) -> str:
    """A name of which every pattern of the table is replaced in turn."""
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name


def rename(state: Mapping[str, Tensor], table: Table) -> StateDict:
    """The tensors under their new names (`new_name`)."""
    return {new_name(name, table): tensor for name, tensor in state.items()}


def fuse(state: Mapping[str, Tensor]) -> StateDict:
    """Separate query, key and value projections -> one matrix. A bias that one of them lacks is 0."""
    fused = dict(state)
    for name, tensor in state.items():
        for triple in _TRIPLES:
            match = re.fullmatch(rf"(.*\battn\.){triple[0]}\.(weight|bias)", name)
            if match:
                parts = [fused.pop(f"{match[1]}{part}.{match[2]}", torch.zeros_like(tensor)) for part in triple]
                fused[f"{match[1]}qkv.{match[2]}"] = torch.cat(parts)
    return fused
