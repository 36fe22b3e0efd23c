"""MultiMAE's encoder (arXiv 2204.01678) as it reads RGB images alone."""

from __future__ import annotations

import re

from ..types import IMAGENET_MEAN, IMAGENET_STD
from .files import StateDict
from .key_maps import WRAPPERS, rename
from .locate import WeightFiles
from .spec_from_weights import Traits, normalisation

_PUBLIC = (
    (r"^encoder\.(\d+)\.", r"blocks.\1."),
    (r"^input_adapters\.rgb\.proj\.", "patch_embed.proj."),
)


def read(found: WeightFiles) -> tuple[StateDict, Traits] | None:
    """MultiMAE's weights under timm's names; None where the weights are none.

    Its global token takes the class token's place: to attention their order is nothing. Its positions come with it,
    D h w: they count rows first, as MAE's do not. It has no final norm.
    """
    state = rename(found.state, WRAPPERS)
    if "input_adapters.rgb.proj.weight" not in state or "global_tokens" not in state:
        return None
    state = rename({n: t for n, t in state.items() if not re.match(r"(output|input)_adapters\.(?!rgb\.)", n)}, _PUBLIC)
    state["cls_token"] = state.pop("global_tokens")
    state["pos_embed"] = state.pop("input_adapters.rgb.pos_emb").flatten(2).transpose(1, 2)
    mean, std = normalisation(found, IMAGENET_MEAN, IMAGENET_STD)
    return state, Traits("MultiMAE", heads=found.config.get("num_attention_heads"), mean=mean, std=std)
