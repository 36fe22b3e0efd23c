"""An encoder with a linear classifier in the layouts of timm and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from ..encoder import Encoder
from .layouts import timm_config, timm_weights, transformers_config, transformers_weights
from .weight_files import StateDict


@dataclass(frozen=True)
class LinearClassifier:
    """What a linear layer classifies: the class token or the mean of the patches, and where a norm stands.

    `norm` comes after the mean, or takes the place of the encoder's own before the class token; None is the encoder's
    own, before either.
    """

    encoder: Encoder
    pool: Literal["cls", "mean"]
    norm: nn.LayerNorm | None
    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    classes: Sequence[str]


def timm_classifier(model: LinearClassifier, licence: str | None) -> tuple[StateDict, dict[str, Any]]:
    """Weights and `config.json` of timm's `VisionTransformer` with its head: a norm after the mean is `fc_norm`."""
    state, config = timm_weights(model.encoder), timm_config(model.encoder, licence)
    state |= {"head.weight": model.weight, "head.bias": model.bias}
    is_after = model.norm is not None and model.pool == "mean"
    if model.norm is not None:
        name = "fc_norm" if is_after else "norm"
        state |= {f"{name}.{part}": tensor.detach() for part, tensor in model.norm.state_dict().items()}
    if is_after:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    pool = "token" if model.pool == "cls" else "avg"
    read = {"num_classes": len(model.classes), "global_pool": pool, "fc_norm": is_after}
    config["model_args"] |= read
    config["pretrained_cfg"] |= {"num_classes": len(model.classes)}
    named = {"num_classes": len(model.classes), "global_pool": pool, "label_names": list(model.classes)}
    return state, config | named


def transformers_classifier(model: LinearClassifier) -> tuple[StateDict, dict[str, Any]]:
    """Weights and `config.json` of transformers' `ViTForImageClassification`.

    Raises ValueError for a head on the mean of the patches, for which that class has no place.
    """
    if model.pool != "cls":
        raise ValueError(
            "ViTForImageClassification reads the class token, and this head the mean of the patches; use --to timm,"
            " onnx or torch, or train the head with --pool cls"
        )
    state = {f"vit.{name}": tensor for name, tensor in transformers_weights(model.encoder).items()}
    if model.norm is not None:
        state |= {f"vit.layernorm.{part}": tensor.detach() for part, tensor in model.norm.state_dict().items()}
    state |= {"classifier.weight": model.weight, "classifier.bias": model.bias}
    labels = {str(number): name for number, name in enumerate(model.classes)}
    config = transformers_config(model.encoder) | {"architectures": ["ViTForImageClassification"], "id2label": labels}
    return state, config | {"label2id": {name: int(number) for number, name in labels.items()}}
