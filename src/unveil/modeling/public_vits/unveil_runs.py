"""Our own runs: a folder, or a checkpoint's `model.safetensors`, which carries the facts of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .files import StateDict
from .locate import WeightFiles
from .spec_from_weights import Traits

_ADAPTER = "encoder.adapters."


def _own(modality: Mapping[str, Any]) -> str:
    return f"{_ADAPTER}{modality['name']}.proj."


def read(found: WeightFiles) -> tuple[StateDict, Traits] | None:
    """The encoder of a run under timm's names; None where the weights are none of ours.

    Raises ValueError for a checkpoint that does not say how its images were normalised.
    """
    if not any(name.startswith(_ADAPTER) for name in found.state):
        return None
    facts = found.config.get("unveil", {})
    told = [facts["modality"]] if "modality" in facts else [d["modality"] for d in facts.get("modalities", ())]
    images = [m for m in told if m.get("kind", "continuous") == "continuous" and f"{_own(m)}weight" in found.state]
    if not images:
        raise ValueError("these are weights of an unveil run without what its run.json says; give the run folder")
    modality = next((m for m in images if m["name"] == "rgb"), images[0])
    own, channels = _own(modality), modality["channels"]
    weight = found.state[f"{own}weight"]
    patch = math.isqrt(weight.shape[1] // channels)
    size = facts.get("dials", {}).get("image_size", (224,))
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
