"""A public ViT as the encoder that a recipe builds: what that is, its weights under our names, or why there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..modeling.encoder import SIZES, MlpKind, mlp_width
from ..modeling.layers import EPS
from ..modeling.position_table import TABLE
from ..modeling.public_vits import (
    BESIDE,
    GIVEN,
    StateDict,
    ViT,
    ViTConfig,
    WeightFiles,
    recognise,
    rename,
    sincos_grid,
    to_own_names,
)
from ..modeling.types import Modality
from .stored_encoder import StoredEncoder

LAYER_SCALE = 1e-5  # DINOv2's first value
_VIT = ((r"^embed\.", "encoder.adapters.rgb.proj."), (r"^prefix$", "encoder.prefix"), (r"^table$", TABLE),
        (r"^(blocks|norm)\.", r"encoder.\1."))  # fmt: skip


@dataclass(frozen=True)
class PublicWeights:
    """Public weights under our names, images called rgb, and the encoder that they are.

    `encoder` is None where no recipe builds it, for the reasons `unlike`, or where it is not known, for `unknown`.
    `antialias` says how its source resizes a table of positions.
    """

    weights: StateDict
    encoder: StoredEncoder | None = None
    antialias: bool = False
    unlike: tuple[str, ...] = ()
    unknown: str = ""


def public_weights(files: WeightFiles) -> PublicWeights:
    """The weights in files that are no run's, for a run to start from; decoders keep their tensors."""
    names = to_own_names(files.state)
    try:
        config, vit, _ = recognise(_with_heads(files, names))
    except ValueError as error:
        return PublicWeights(names, unknown=str(error))
    if "global_tokens" in files.state:  # MultiMAE, whose tensors are those of several maps
        return PublicWeights(names, described(config, "rgb", has_table=False))
    has_table = config.positions == "table" and sincos_grid(_with_class_token(vit["table"])) is None
    weights = rename(vit, _VIT)
    if not has_table:
        weights.pop(TABLE, None)
    with torch.device("meta"):
        own = ViT(config).state_dict().keys()
    left = {name: tensor for name, tensor in vit.items() if name not in own and not BESIDE.match(name)}
    weights = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")} | left
    if any(re.match(r"decoders\.\w+\.blocks\.", name) for name in names):
        weights |= {n: tensor for n, tensor in names.items() if n.startswith(("decoders.", "objectives."))}
    if unlike := _unlike(config):
        return PublicWeights(weights, unlike=tuple(unlike))
    return PublicWeights(weights, described(config, "rgb", has_table), config.antialias)


def described(config: ViTConfig, image: str, has_table: bool) -> StoredEncoder:
    """The encoder of ours that a public ViT is, where it is one; `image` is what its images are called."""
    return StoredEncoder(
        (Modality(image, config.channels, config.mean, config.std), *config.also),
        (config.grid[0] * config.patch, config.grid[1] * config.patch),
        config.patch,
        config.width,
        config.depth,
        config.heads,
        config.final_norm == "all",
        config.class_width,
        config.resize_positions,
        "learned" if has_table else "sincos",
        config.num_prefix - 1,
        LAYER_SCALE if config.has_layer_scale else None,
        _mlp(config),
    )


def described_file(files: WeightFiles) -> StoredEncoder | None:
    """The encoder in a file that `ImageEncoder.save` wrote, or in a checkpoint; None where that does not say enough."""
    try:
        config, _, _ = recognise(files)
        return described(config, "rgb", TABLE in files.state) if not _unlike(config) else None
    except ValueError:
        return None


def _unlike(config: ViTConfig) -> list[str]:
    """What a public ViT has and the encoders of recipes have not."""
    own_width = mlp_width(_mlp(config), config.width)
    is_gelu = config.activation == "gelu" and not config.is_gated
    has = {
        "rotary positions": config.positions == "rotary",
        "no class token": not config.has_class_token or not config.num_prefix,
        "a norm before its blocks": config.has_pre_norm,
        f"the activation {config.activation}{', gated' * config.is_gated}": not is_gelu
        and not (config.is_gated and config.activation == "silu"),
        f"MLPs that are {config.hidden} wide inside, where recipes have {own_width}": config.hidden != own_width,
        f"norms with an epsilon of {config.eps:g}, where recipes have {EPS:g}": config.eps > EPS,
        f"{config.depth} blocks of width {config.width} with {config.heads} heads, which is no --size": (
            (config.width, config.depth, config.heads) not in SIZES.values()
        ),
    }
    return [what for what, is_so in has.items() if is_so]


def _mlp(config: ViTConfig) -> MlpKind:
    return "swiglu" if config.is_gated else "gelu"


def _with_heads(files: WeightFiles, names: StateDict) -> WeightFiles:
    """The files with the number of heads of the --size that they are, where no configuration says it."""
    norm = names.get("encoder.blocks.0.norm1.weight")
    blocks = {match[1] for name in names if (match := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    shape = (0 if norm is None else len(norm), len(blocks))
    known = [heads for dim, depth, heads in SIZES.values() if (dim, depth) == shape]
    return files if files.config or not known else replace(files, config={GIVEN: {"heads": known[0]}})


def _with_class_token(table: Tensor) -> Tensor:
    cells = table.flatten(0, 1)
    return torch.cat([cells[:1], cells])[None]
