"""Weights of other projects: the one room that knows their names.

Reads safetensors, or `.pth` through torch's weights-only loader with an allow-list, so that no pickle runs code. Public
MAE and CrossMAE keys and transformers' ViTMAE are translated into ours; whatever is loaded comes with a table of keys.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .layers import sincos_positions

State = dict[str, Tensor]

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

_TRANSFORMERS = (  # a ViTMAE layer's names -> the public ones
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"attention\.(q|k|v)_proj\.", r"attn.\1_proj."),
    (r"attention\.o_proj\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"^vit\.", ""),  # the encoder saved alone goes without
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^decoder\.(decoder_layers|decoder_encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
)


@dataclass(frozen=True)
class KeyReport:
    """What became of every key when weights were loaded."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        rows = [f"{len(self.loaded)} tensors loaded"]
        for title, keys in (
            ("missing (start fresh)", self.missing),
            ("unexpected (left out)", self.unexpected),
            ("of another shape (start fresh)", self.reshaped),
        ):
            if keys:
                rows.append(f"{len(keys)} {title}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}")
        return "\n".join(rows)


def read_weights(path: str | Path) -> State:
    """The tensors of a weight file, under the names that the file gives them.

    Raises FileNotFoundError when there is no such file, ValueError for a file that holds no weights, or a pickle with
    code in it, which is refused and not run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file at {path}; give a .safetensors or .pth file, or a run folder")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own bare exception type
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file trips the reader in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} was refused: it is damaged or holds more than tensors ({reason})") from error
    for wrapper in ("model", "state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise ValueError(f"{path} holds no weights: a state dict was expected, or a dict with one under 'model'")
    return state


def translate(state: Mapping[str, Tensor], modality: str = "rgb") -> State:
    """Public MAE, CrossMAE or transformers' ViTMAE weights under our names; our own pass as they are.

    Fixed sine-cosine tables are left out: they are computed. A learned one stays under its own name, which no model
    has, so that the table of keys tells of it. Patch projections are laid out row, column, channel.
    """
    if any(name.startswith("encoder.adapters.") for name in state):
        return dict(state)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # of a distributed run
    if any(name.startswith(("vit.", "embeddings.")) for name in state):
        state = _fuse(_from_transformers(state))
    ours: State = {}
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


def _from_transformers(state: Mapping[str, Tensor]) -> State:
    renamed: State = {}
    for name, tensor in state.items():
        for pattern, public in _TRANSFORMERS:
            name = re.sub(pattern, public, name)
        renamed[name] = tensor
    return renamed


def _fuse(state: Mapping[str, Tensor]) -> State:
    """Separate query, key and value projections -> one fused matrix."""
    fused: State = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*\.attn\.)(query|q_proj)\.(weight|bias)", name)
        if match:
            names = ("query", "key", "value") if match[2] == "query" else ("q_proj", "k_proj", "v_proj")
            fused[f"{match[1]}qkv.{match[3]}"] = torch.cat([state[f"{match[1]}{n}.{match[3]}"] for n in names])
        elif not re.search(r"\.attn\.(key|value|k_proj|v_proj)\.", name):
            fused[name] = tensor
    return fused


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> KeyReport:
    """Copy what fits by name and shape into a model; say what did not."""
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    reshaped = tuple(k for k in state if k in own and k not in fits)
    model.load_state_dict(fits, strict=False)
    return KeyReport(
        loaded=tuple(fits),
        missing=tuple(k for k in own if k not in state),
        unexpected=tuple(k for k in state if k not in own),
        reshaped=reshaped,
    )
