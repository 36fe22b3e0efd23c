"""Public MAE and CrossMAE weights, and transformers' ViTMAE, under our names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..layers import sincos_positions
from .files import StateDict
from .key_maps import TRANSFORMERS, fuse, rename
from .multimodal import is_multimae, translate_multimae

_BLOCK = (("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.2."))

_PUBLIC = (  # MAE and CrossMAE, in the order in which prefixes are tried
    ("decoder_blocks.", "decoders.pixels.blocks."),
    ("decoder_embed.", "decoders.pixels.embed."),
    ("decoder_norm.", "decoders.pixels.norm."),
    ("decoder_pred.", "objectives.0.head."),
    ("dec_norms.", "decoders.pixels.context_norms."),
    ("wfm.linear.weight", "decoders.pixels.blend.weight"),
    ("mask_token", "decoders.pixels.mask_token"),
    ("cls_token", "encoder.prefix"),
    ("patch_embed.proj.", "encoder.adapters.rgb.proj."),
    ("blocks.", "encoder.blocks."),
    ("norm.", "encoder.norm."),
)

_DECODER = (  # of transformers' ViTMAE
    (r"^decoder\.(decoder_layers|decoder_encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
)


def to_own_names(state: Mapping[str, Tensor], modality: str = "rgb") -> StateDict:
    """Public MAE, CrossMAE or transformers' ViTMAE weights under our names; our own pass as they are.

    Fixed sine-cosine tables are left out: they are computed. A learned one stays under its own name, which no model
    has, so that the table of keys tells of it. Patch projections are laid out row, column, channel.
    """
    if any(name.startswith("encoder.adapters.") for name in state):
        return dict(state)
    if is_multimae(state):
        return translate_multimae(state)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # of a distributed run
    if any(name.startswith(("vit.", "embeddings.")) for name in state):
        state = fuse(rename(state, (*TRANSFORMERS, *_DECODER)))
    ours: StateDict = {}
    for name, tensor in state.items():
        if name in ("pos_embed", "decoder_pos_embed") and _is_sincos(tensor):
            continue
        new = _rename(name).replace("adapters.rgb.", f"adapters.{modality}.")
        if name == "patch_embed.proj.weight":
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)
        elif name == "mask_token":
            tensor = tensor.flatten()
        elif name == "cls_token":
            tensor = tensor.flatten(0, 1)
        ours[new] = tensor
    return ours


def _is_sincos(table: Tensor) -> bool:
    """Whether a table of positions, 1 x (1 + N) x D, is the fixed one of some grid."""
    if table.ndim != 3 or table.shape[1] < 2 or table.shape[2] % 4:
        return False
    cells = table[0, 1:].float()
    grids = [(rows, len(cells) // rows) for rows in range(1, len(cells) + 1) if len(cells) % rows == 0]
    return any(torch.allclose(cells, sincos_positions(grid, cells.shape[1]), atol=1e-2) for grid in grids)


def _rename(name: str) -> str:
    for theirs, our in _PUBLIC:
        if name.startswith(theirs):
            name = our + name[len(theirs) :]
            break
    for theirs, our in _BLOCK:
        name = name.replace(theirs, our)
    return name
