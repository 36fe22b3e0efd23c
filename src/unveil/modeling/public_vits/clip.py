"""CLIP's image encoders: OpenAI's, OpenCLIP's and transformers' names."""

from __future__ import annotations

from .files import StateDict
from .key_maps import OPENAI, TRANSFORMERS, rename
from .locate import WeightFiles
from .spec_from_weights import Traits, activation_of, normalisation

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def read(found: WeightFiles) -> tuple[StateDict, Traits] | None:
    """CLIP's vision tower under timm's names; None where the weights are none.

    Its final norm is meant for the class token, which the projection reads. Without a configuration the activation is
    OpenAI's QuickGELU: nothing in the tensors tells OpenCLIP's, some of which have the plain one.
    """
    mean, std = normalisation(found, MEAN, STD)
    if "visual.class_embedding" in found.state:
        tower = {name: tensor for name, tensor in found.state.items() if name.startswith("visual.")}
        state = rename(tower, OPENAI)
        if "proj" in state:
            state["projection.weight"] = state.pop("proj").T
        model = found.config.get("model_cfg", {})  # OpenCLIP's
        is_quick = not model or model.get("quick_gelu", False)
        width = len(state["cls_token"].flatten())
        head = model.get("vision_cfg", {}).get("head_width")
        heads = width // head if head else None
        activation = activation_of("quick_gelu" if is_quick else "gelu")
        return state, Traits("CLIP", 1e-5, activation, heads, "cls", mean=mean, std=std)
    names = ("vision_model.embeddings.class_embedding", "embeddings.class_embedding")
    if any(name in found.state for name in names):
        config = found.config.get("vision_config", found.config)
        words = ("vision_model.", "visual_projection.")
        tower = {n: t for n, t in found.state.items() if names[0] not in found.state or n.startswith(words)}
        tower.pop("vision_model.embeddings.position_ids", None)
        return rename(tower, TRANSFORMERS), Traits(
            "CLIP",
            config.get("layer_norm_eps", 1e-5),
            activation_of(config.get("hidden_act", "quick_gelu")),
            config.get("num_attention_heads"),
            "cls",
            mean=mean,
            std=std,
        )
    return None
