"""Parameter names: of transformers and OpenAI to those that most public ViTs use (timm's), and of all to unveil's own.

MultiMAE has two other conventions, which are converted exactly: its sine-cosine positions encode the row in the first
half and ours the column, so whatever is added to them swaps its halves; its patches are laid out channel, row, column
and ours row, column, channel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..layers import sincos_positions
from ..types import DEPTH, SEMSEG
from .weight_files import StateDict

Table = Sequence[tuple[str, str]]  # a pattern and what it becomes, tried in this order

TRANSFORMERS: Table = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|vision_model|model)\.", ""),  # a model under its task's head
    (r"attention\.attention\.(q|k|v)(uery|ey|alue)\.", r"attn.\1_proj."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"(self_attn|attention)\.(q|k|v)_proj\.", r"attn.\2_proj."),
    (r"(self_attn|attention)\.(o|out)_proj\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
    (r"mlp\.(weights_in|up_proj)\.", "mlp.fc1."),
    (r"mlp\.(weights_out|down_proj)\.", "mlp.fc2."),
    (r"mlp\.gate_proj\.", "mlp.gate."),
    (r"mlp\.fc1_g\.", "mlp.gate."),  # timm's
    (r"mlp\.fc1_x\.", "mlp.fc1."),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"(layernorm_before|layer_norm1)\.", "norm1."),
    (r"(layernorm_after|layer_norm2)\.", "norm2."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^(encoder\.layers?|layers?)\.", "blocks."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pre_lay(er|r)norm\.", "norm_pre."),  # CLIP's is spelled layrnorm
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

_MAE = (  # MAE and CrossMAE; the first prefix that fits is replaced
    (r"^decoder_(blocks|embed|norm)\.", r"decoders.pixels.\1."),
    (r"^decoder_pred\.", "objectives.0.head."),
    (r"^dec_norms\.", "decoders.pixels.context_norms."),
    (r"^wfm\.linear\.weight", "decoders.pixels.blend.weight"),
    (r"^mask_token", "decoders.pixels.mask_token"),
    (r"^cls_token", "encoder.prefix"),
    (r"^patch_embed\.proj\.", "encoder.adapters.rgb.proj."),
    (r"^(blocks|norm)\.", r"encoder.\1."),
    *MLP,
)
_DECODER = (  # of transformers' ViTMAE
    (r"^decoder\.(decoder_layers|decoder_encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
)
_LIGHTLY = ((r"^decoder\.(?=decoder_|mask_token$)", ""),)  # lightly's MAEDecoderTIMM as a part of a module
_MULTIMAE = (
    (r"^global_tokens$", "encoder.prefix"),
    (r"^input_adapters\.(\w+)\.class_emb\.", r"encoder.adapters.\1.classes."),
    (r"^input_adapters\.", "encoder.adapters."),
    (r"^encoder\.(\d+)\.", r"encoder.blocks.\1."),
    (r"^output_adapters\.(\w+)\.proj_context\.", r"decoders.\1.embed."),
    (r"^output_adapters\.(\w+)\.task_embeddings\.", r"decoders.\1.tasks."),
    (r"^output_adapters\.(\w+)\.decoder_transformer\.", r"decoders.\1.blocks."),
    (r"^output_adapters\.(\w+)\.decoder\.", r"decoders.\1.cross_attn."),
    (r"^output_adapters\.", "decoders."),
    *MLP,
)
_WRITES = re.compile(r"(attn\.proj|mlp\.2|\.embed|adapters\.\w+\.proj)\.(weight|bias)$")
_READS = re.compile(r"(qkv|mlp\.0|cross_attn\.(q|kv)|\.embed|\.head)\.weight$")
_IS_TOKEN = re.compile(r"(prefix|mask_token|\.tasks\.\w+|norm\d?\.(weight|bias))$")


def new_name(name: str, table: Table) -> str:
    """A name in which every pattern of the table is replaced in turn."""
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name


def rename(state: Mapping[str, Tensor], table: Table) -> StateDict:
    """The tensors under their new names (`new_name`)."""
    return {new_name(name, table): tensor for name, tensor in state.items()}


def fuse(state: Mapping[str, Tensor]) -> StateDict:
    """Separate query, key and value projections -> one matrix. A bias that one of them lacks is 0 (BEiT's keys).

    Raises ValueError where another block has that bias, and for a matrix that is missing.
    """
    biases = ((r"\.attn\.([qkv])_bias$", r".attn.\1_proj.bias"),)
    fused = rename(state, biases)
    state = dict(fused)
    there = {re.sub(r"\d+", "", name) for name in state if name.endswith("bias")}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*\battn\.)q_proj\.(weight|bias)", name):
            names = [f"{match[1]}{letter}_proj.{match[2]}" for letter in "qkv"]
            for lacking in [n for n in names if n not in state]:
                if match[2] == "weight" or re.sub(r"\d+", "", lacking) in there:
                    raise ValueError(f"it lacks the tensor {lacking}, which its other blocks have")
            fused[f"{match[1]}qkv.{match[2]}"] = torch.cat([fused.pop(n, torch.zeros_like(tensor)) for n in names])
    return fused


def to_own_names(state: Mapping[str, Tensor], modality: str = "rgb") -> StateDict:
    """Public MAE, CrossMAE, MultiMAE or transformers' ViTMAE weights under unveil's names; unveil's own are unchanged.

    Fixed sine-cosine tables are left out: they are computed. A learned one keeps its name, which no model has, so that
    the report of keys lists it. Patch projections are laid out row, column, channel. `modality` names the images.
    """
    if any(name.startswith("encoder.adapters.") for name in state):
        return dict(state)
    if any(name.startswith("input_adapters.") for name in state):
        return _from_multimae(state)
    if any(name.startswith(("vit.", "embeddings.")) for name in state):
        state = fuse(rename(state, (*TRANSFORMERS, *_DECODER)))
    ours: StateDict = {}
    for name, tensor in rename(rename(state, _LIGHTLY), _MAE).items():
        if name in ("pos_embed", "decoder_pos_embed") and sincos_grid(tensor):
            continue
        ours[name.replace("adapters.rgb.", f"adapters.{modality}.")] = _own_shape(name, tensor)
    return ours


def _own_shape(name: str, tensor: Tensor) -> Tensor:
    """Patch projections as matrices, laid out row, column, channel; tokens without the dimension of a batch."""
    if tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1).flatten(1)
    if name == "encoder.prefix":
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor.flatten() if tensor.ndim == 3 else tensor


def sincos_grid(table: Tensor) -> tuple[int, int] | None:
    """The grid of which a table of positions, 1 x (1 + N) x D, is the fixed one; None for a learned one."""
    if table.ndim != 3 or table.shape[1] < 2 or table.shape[2] % 4:
        return None
    cells = table[0, 1:].float()
    grids = [(rows, len(cells) // rows) for rows in range(1, len(cells) + 1) if len(cells) % rows == 0]
    return next((g for g in grids if torch.allclose(cells, sincos_positions(g, cells.shape[1]), atol=1e-2)), None)


def _from_multimae(state: Mapping[str, Tensor]) -> StateDict:
    """MultiMAE's weights; modalities keep their names, and each head has that of its output (`load_weights`)."""
    ours: StateDict = {}
    for name, tensor in state.items():
        if name.endswith(".pos_emb") and _is_row_first_sincos(tensor):
            continue
        new = new_name(name, _MULTIMAE)
        if match := re.match(r"output_adapters\.([^.]+)\.out_proj\.(weight|bias)$", name):
            new = f"objectives.{match[1]}.head.{match[2]}"
            channels = _channels(state, match[1])
            tensor = tensor.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)  # to pixel, channel
        tensor = _own_shape(new, tensor)
        if _WRITES.search(new):  # what is added to positions, and below, what reads the sum
            tensor = _swapped(tensor, 0)
        if _READS.search(new) or _IS_TOKEN.search(new):
            tensor = _swapped(tensor, -1)
        ours[new] = tensor
    return ours


def other_inputs(state: Mapping[str, Tensor]) -> tuple[StateDict, dict[str, Any]]:
    """The adapters of a public MultiMAE for depth and semantic classes, and the fields of `ViTConfig` that they are.

    Those of other maps are left out: how such maps are normalised is in no file.
    """
    patch = state["input_adapters.rgb.proj.weight"].shape[-1]
    adapters: StateDict = {}
    also, class_width = [], 64
    for m in (DEPTH, SEMSEG):
        names = {"proj.weight", "proj.bias", *(["class_emb.weight"] if m.kind == "categorical" else [])}
        own = {name: state[key] for name in names if (key := f"input_adapters.{m.name}.{name}") in state}
        if own.keys() != names:
            continue
        stride = patch // own["proj.weight"].shape[-1]
        classes = own.get("class_emb.weight")
        if classes is not None:
            m, class_width = replace(m, num_classes=len(classes)), classes.shape[1]
            adapters[f"adapters.{m.name}.classes.weight"] = classes
        also.append(replace(m, stride=stride))
        adapters[f"adapters.{m.name}.proj.weight"] = _own_shape("", own["proj.weight"])
        adapters[f"adapters.{m.name}.proj.bias"] = own["proj.bias"]
    return adapters, {"also": tuple(also), "class_width": class_width}


def _swapped(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat(tensor.chunk(2, dim=dim)[::-1], dim=dim)


def _channels(state: Mapping[str, Tensor], output: str) -> int:
    """Channels, or classes, of what an output predicts: those of the input of that name."""
    source = output.removeprefix("norm_")
    for name, dim in ((f"input_adapters.{source}.class_emb.weight", 0), (f"input_adapters.{source}.proj.weight", 1)):
        if name in state:
            return state[name].shape[dim]
    raise ValueError(f"this MultiMAE checkpoint predicts {output!r}, but has no input adapter with its channels")


def _is_row_first_sincos(table: Tensor) -> bool:
    """Whether a table, 1 x D x rows x columns, is the fixed one, row first."""
    if table.ndim != 4 or table.shape[1] % 4:
        return False
    fixed = _swapped(sincos_positions((table.shape[2], table.shape[3]), table.shape[1]), 1)
    return torch.allclose(table[0].flatten(1).T.float(), fixed, atol=1e-2)


def adapt_channels(
    weight: Float[Tensor, "D K"], trained: int, channels: int, how: Sequence[str]
) -> Float[Tensor, "D L"]:
    """A patch projection for `channels` input channels from one for `trained`, laid out row, column, channel.

    `how` is `mean`: every channel gets the mean filter; `repeat`: the filters in turn; or one word for each channel:
    the number of a trained one (0 is red) or `mean`. For mean and repeat the filters are scaled by trained / channels,
    which keeps the scale of the outputs; filters chosen by number are not scaled. Raises ValueError for other words.
    """
    if weight.shape[1] % trained:
        raise ValueError(f"a projection of {weight.shape[1]} numbers is not one of patches with {trained} channels")
    filters = rearrange(weight, "d (s c) -> c d s", c=trained)
    mean = filters.mean(dim=0)
    if tuple(how) == ("mean",):
        adapted = [mean * trained / channels] * channels
    elif tuple(how) == ("repeat",):
        adapted = [filters[channel % trained] * trained / channels for channel in range(channels)]
    else:
        wrong = [word for word in how if word != "mean" and not (word.isdecimal() and int(word) < trained)]
        if wrong or len(how) != channels:
            raise ValueError(
                f"--init-channels {' '.join(how)}: mean, repeat, or one word for each of {channels} channels is needed:"
                f" a number from 0 to {trained - 1}, or mean"
            )
        adapted = [mean if word == "mean" else filters[int(word)] for word in how]
    return rearrange(torch.stack(adapted), "c d s -> d (s c)")


def with_channels(state: StateDict, modality: str, channels: int, side: int, how: Sequence[str]) -> StateDict:
    """Weights whose projection of a modality is adapted to its channels; without one, that of rgb is.

    Raises ValueError when the weights have no such projection, or one of another patch.
    """
    names = (f"encoder.adapters.{modality}.proj", "encoder.adapters.rgb.proj")
    source = next((name for name in names if f"{name}.weight" in state), None)
    if source is None:
        raise ValueError(f"--init-channels: the weights have no projection of {modality} or rgb patches to adapt")
    weight = state[f"{source}.weight"]
    if weight.shape[1] % side**2:
        raise ValueError(f"--init-channels: the weights have another patch than {side} x {side}; give --patch")
    others = {name: tensor for name, tensor in state.items() if not name.startswith(f"{source}.")}
    bias = {f"{names[0]}.bias": state[f"{source}.bias"]} if f"{source}.bias" in state else {}
    adapted = adapt_channels(weight, weight.shape[1] // side**2, channels, how)
    return others | {f"{names[0]}.weight": adapted} | bias
