"""Public MultiMAE weights, encoder and decoders, under our names.

Two conventions differ, and both are settled here, exactly: their sine-cosine positions encode the row in the first half
and ours the column, so whatever is added to them swaps its halves; their patches are laid out channel, row, column and
ours row, column, channel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..layers import sincos_positions
from .files import StateDict

_NAMES = (
    (r"^global_tokens$", "encoder.prefix"),
    (r"^input_adapters\.(\w+)\.class_emb\.", r"encoder.adapters.\1.classes."),
    (r"^input_adapters\.", "encoder.adapters."),
    (r"^encoder\.(\d+)\.", r"encoder.blocks.\1."),
    (r"^output_adapters\.(\w+)\.proj_context\.", r"decoders.\1.embed."),
    (r"^output_adapters\.(\w+)\.task_embeddings\.", r"decoders.\1.tasks."),
    (r"^output_adapters\.(\w+)\.decoder_transformer\.", r"decoders.\1.blocks."),
    (r"^output_adapters\.(\w+)\.decoder\.", r"decoders.\1.cross_attn."),
    (r"^output_adapters\.", "decoders."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)
_WRITES = re.compile(r"(attn\.proj|mlp\.2|\.embed|adapters\.\w+\.proj)\.(weight|bias)$")
_READS = re.compile(r"(qkv|mlp\.0|cross_attn\.(q|kv)|\.embed|\.head)\.weight$")
_IS_TOKEN = re.compile(r"(prefix|mask_token|\.tasks\.\w+|norm\d?\.(weight|bias))$")


def is_multimae(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of a state dict are MultiMAE's."""
    return any(name.startswith("input_adapters.") for name in state)


def translate_multimae(state: Mapping[str, Tensor]) -> StateDict:
    """Public MultiMAE weights under our names, modalities under theirs; objectives follow the order of the decoders.

    Fixed sine-cosine tables are left out: they are computed. A learned one stays, and the table of keys tells of it.
    """
    outputs = list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("output_adapters.")))
    ours: StateDict = {}
    for name, tensor in state.items():
        if name.endswith(".pos_emb") and _is_sincos(tensor):
            continue
        if name.endswith((".out_proj.weight", ".out_proj.bias")):
            output, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            new = f"objectives.{outputs.index(output)}.head.{kind}"
            tensor = _channels_last(tensor, _channels(state, output))
        else:
            new = name
            for pattern, our in _NAMES:
                new = re.sub(pattern, our, new)
            if tensor.ndim == 4:  # a patch projection
                tensor = tensor.permute(0, 2, 3, 1).flatten(1)
            elif new == "encoder.prefix":
                tensor = tensor.flatten(0, 1)
            elif tensor.ndim == 3:
                tensor = tensor.flatten()
        ours[new] = _columns_first(new, tensor)
    return ours


def _columns_first(name: str, tensor: Tensor) -> Tensor:
    """Swap the halves of what is added to positions, and of what reads the sum."""
    if _WRITES.search(name):
        tensor = _swapped(tensor, 0)
    if _READS.search(name) or _IS_TOKEN.search(name):
        tensor = _swapped(tensor, -1)
    return tensor


def _swapped(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat(tensor.chunk(2, dim=dim)[::-1], dim=dim)


def _channels(state: Mapping[str, Tensor], output: str) -> int:
    """Channels, or classes, of what an output predicts: those of the input of that name."""
    source = output.removeprefix("norm_")
    for name, dim in ((f"input_adapters.{source}.class_emb.weight", 0), (f"input_adapters.{source}.proj.weight", 1)):
        if name in state:
            return state[name].shape[dim]
    raise ValueError(f"this MultiMAE checkpoint predicts {output!r}, but has no input adapter that tells its channels")


def _channels_last(tensor: Tensor, channels: int) -> Tensor:
    """The outputs of a head, channel, pixel -> pixel, channel."""
    return tensor.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)


def _is_sincos(table: Tensor) -> bool:
    """Whether a table, 1 x D x rows x columns, is the fixed one, row first."""
    if table.ndim != 4 or table.shape[1] % 4:
        return False
    fixed = _swapped(sincos_positions((table.shape[2], table.shape[3]), table.shape[1]), 1)
    return torch.allclose(table[0].flatten(1).T.float(), fixed, atol=1e-2)
