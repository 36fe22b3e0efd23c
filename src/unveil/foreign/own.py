"""Our own runs: a folder, or a checkpoint's `model.safetensors`, which carries the facts of its run."""

from __future__ import annotations

import math

from .addresses import Found
from .assembly import Traits
from .files import State

_ADAPTER = "encoder.adapters."


def read(found: Found) -> tuple[State, Traits] | None:
    """The encoder of a run under timm's names; None where the weights are none of ours.

    Raises ValueError for a checkpoint that does not say how its images were normalised.
    """
    adapters = [name for name in found.state if name.startswith(_ADAPTER) and name.endswith(".proj.weight")]
    if not adapters:
        return None
    facts = found.config.get("unveil", {})
    modality, dials = facts.get("modality"), facts.get("dials", {})
    if not modality:
        raise ValueError("these are weights of an unveil run without what its run.json says; give the run folder")
    own = f"{_ADAPTER}{modality['name']}.proj."
    weight = found.state[f"{own}weight"]
    channels = modality["channels"]
    patch = math.isqrt(weight.shape[1] // channels)
    size = dials.get("image_size", (224,))
    state = {
        "patch_embed.proj.weight": weight.unflatten(1, (patch, patch, channels)).permute(0, 3, 1, 2),
        "patch_embed.proj.bias": found.state[f"{own}bias"],
        "cls_token": found.state["encoder.prefix"],
    }
    for name, tensor in found.state.items():
        if name.startswith(("encoder.blocks.", "encoder.norm.")):
            state[name.removeprefix("encoder.").replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.2.", ".mlp.fc2.")] = (
                tensor
            )
    return state, Traits(
        "unveil",
        heads=facts.get("model", {}).get("heads"),
        positions="sincos",
        grid=(size[0] // patch, size[-1] // patch),
        mean=tuple(modality["mean"]),
        std=tuple(modality["std"]),
    )
