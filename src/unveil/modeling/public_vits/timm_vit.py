"""Plain ViTs: supervised ViT and DeiT, MAE, CrossMAE and DINO, by their public, timm's and transformers' names."""

from __future__ import annotations

from ..types import IMAGENET_MEAN, IMAGENET_STD
from . import clip
from .files import StateDict
from .key_maps import TRANSFORMERS, WRAPPERS, rename
from .locate import WeightFiles
from .spec_from_weights import Traits, activation_of, normalisation

_HALF = (0.5, 0.5, 0.5)


def read(found: WeightFiles) -> tuple[StateDict, Traits] | None:
    """A plain ViT's weights under timm's names; None where the weights are none.

    Without files beside them, transformers' ViT has its images normalised to [-1, 1], as it was trained, and all
    others by ImageNet's statistics.
    """
    state = rename(found.state, (*WRAPPERS, *TRANSFORMERS))
    if "patch_embed.proj.weight" not in state:
        return None
    config, is_timm = found.config, "architecture" in found.config
    is_clip = "norm_pre.weight" in state  # as timm saves it
    is_quick = is_clip and "quickgelu" in config.get("architecture", "")
    is_half = config.get("model_type") == "vit"
    usual = (clip.MEAN, clip.STD) if is_clip else (_HALF, _HALF) if is_half else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = normalisation(found, *usual)
    return state, Traits(
        "ViT",
        config.get("layer_norm_eps", 1e-5 if is_clip else 1e-6),
        activation_of(config.get("hidden_act", "quick_gelu" if is_quick else "gelu")),
        config.get("num_attention_heads"),
        antialias=is_timm,
        mean=mean,
        std=std,
    )
