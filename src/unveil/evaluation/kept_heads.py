"""Heads that evaluations have trained, kept in a run folder: `heads/<protocol>.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..modeling.image_encoder import FeatureExtractor
from ..modeling.types import Pool
from ..runs.atomic import make_folder
from ..runs.checkpoint import write_weights
from ..runs.console import suggest
from ..runs.regular_files import check_regular

FOLDER = "heads"
_KEY = "unveil_head"  # of the JSON in a file's metadata

Task = Literal["classes", "semseg", "depth", "boxes"]
Model = Literal["linear", "attentive", "finetune", "dense", "detect"]


@dataclass(frozen=True)
class KeptHead:
    """A trained head: what it predicts, how it is built again, its weights.

    `settings` are what a `model` is built from, as JSON holds them. `tensors` are those of the head, and of the encoder
    where that was trained too (`trains_encoder`). `classes` are names, in the order of the outputs. `facts` say where
    it comes from: protocol, data, the encoder's weights.
    """

    task: Task
    model: Model
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)
    trains_encoder: bool = False
    classes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def of(self, classes: tuple[str, ...], facts: Mapping[str, Any]) -> KeptHead:
        """The same with names for its classes, where it has none yet, and with where it comes from."""
        return replace(self, classes=self.classes or classes, facts=facts)

    def write(self, run: Path, name: str) -> Path:
        """Write the file of a protocol's head whole or not at all, in place of an earlier one."""
        file = run / FOLDER / f"{name}.safetensors"
        make_folder(file.parent)
        content: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "settings": self.settings,
            "classes": self.classes,
        }
        content |= {"trains_encoder": self.trains_encoder, "facts": self.facts}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_weights(file, tensors, {_KEY: json.dumps(content)})
        return file


def linear_head(encoder: object, weight: Float[Tensor, "K D"], bias: Float[Tensor, " K"], pool: Pool) -> KeptHead:
    """A linear layer on the features of an encoder, as it reads and normalises them now."""
    assert isinstance(encoder, FeatureExtractor)
    settings: dict[str, Any] = {"pool": pool, "layers": list(encoder.layers), "combine": encoder.combine}
    tensors = {"weight": weight, "bias": bias}
    if (normalizer := encoder.normalizer) is not None:
        settings["normalize"] = normalizer.kind
        tensors |= {f"normalizer.{name}": tensor for name, tensor in normalizer.state_dict().items()}
    return KeptHead("classes", "linear", settings, tensors)


def kept_heads(run: Path) -> list[str]:
    """The names of the heads that a run has, in order."""
    return sorted(file.stem for file in (run / FOLDER).glob("*.safetensors"))


def read_head(run: Path, name: str | None = None) -> KeptHead:
    """A head of a run by the name of its protocol; without a name the only one.

    Raises ValueError where there is none of that name, or several and no name, and for a damaged file.
    """
    there = kept_heads(run)
    if not there:
        raise ValueError(f"{run} has no head; `unveil evaluate {run} --data DATA --protocol finetune --keep` keeps one")
    if name is None and len(there) > 1:
        raise ValueError(f"{run} has several heads, {', '.join(there)}; choose one with --head")
    if name is not None and name not in there:
        raise ValueError(f"{run} has no head {name!r}; {suggest(name, there)}")
    file = run / FOLDER / f"{name or there[0]}.safetensors"
    try:
        check_regular(file)
        with safe_open(file, "pt") as stored:
            content = json.loads(stored.metadata()[_KEY])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  no mapping
        content["classes"] = tuple(map(str, content["classes"]))
        head = KeptHead(tensors=tensors, **content)
        if head.task not in get_args(Task) or head.model not in get_args(Model):
            raise ValueError(f"a {head.model!r} of {head.task!r} is not known")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no head ({error}); evaluate again with --keep") from error
    return head
