"""Kept heads outside of their run: programs of torch and ONNX, and a folder that `unveil.load(folder, head=...)` reads.

The folder holds all tensors in `model.safetensors`, those of the head under `head.` and those of an encoder that was
not trained with it under `encoder.`, and what they are built into in `config.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._version import __version__
from ..data.image_transform import ImageTransform
from ..evaluation.kept_heads import KeptHead, Model, Task
from ..evaluation.predictors import Predictor, predictor
from ..modeling.image_encoder import ImageEncoder
from ..modeling.public_vits import PublicViT, WeightFiles, encoder_of
from ..recipes.run import Run
from ..recipes.stored_encoder import StoredEncoder
from ..runs.atomic import write_json
from ..runs.checkpoint import write_weights
from ..runs.console import user_path
from ..runs.regular_files import check_regular, read_text

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_KEY = "unveil_head"  # of the entry of the configuration
_HEAD, _ENCODER = "head.", "encoder."


def output_of(model: Predictor) -> dict[str, Any]:
    """What a head's numbers mean: its task, and the names of its classes or the unit."""
    meaning = {"classes": list(model.classes)} if model.classes else {"unit": "metres"}
    return {"task": model.task, **meaning}


def write_head(run: Run, head: KeptHead, model: Predictor, folder: Path) -> None:
    """Write a kept head of a run, with its encoder, as files for `read_head_folder`.

    Raises ValueError for an encoder of classes of the user's own, which its recipe alone builds.
    """
    encoder = run.encoder("mean", head.facts.get("at_epoch"), trained=not head.trains_encoder)
    weights = {_HEAD + name: tensor for name, tensor in head.tensors.items()}
    described: dict[str, Any]
    if isinstance(encoder, ImageEncoder):
        stored = StoredEncoder.of(encoder.encoder)
        if stored is None:
            raise ValueError(f"{run.path} has an encoder that its recipe alone builds; use --to torch or onnx")
        described = {"own": asdict(stored)}
        own = {} if head.trains_encoder else encoder.encoder.state_dict()
    else:
        described, own = {"public": run.imported["beside"]}, run.checkpoint(head.facts.get("at_epoch")).model
    weights |= {_ENCODER + name: tensor for name, tensor in own.items()}
    facts = {**head.facts, "data": str(head.facts.get("data", "")).rstrip("/").rpartition("/")[2]}
    content: dict[str, Any] = {"task": head.task, "model": head.model, "settings": head.settings, "facts": facts}
    content |= {"trains_encoder": head.trains_encoder, "classes": list(head.classes), "encoder": described}
    size = {"image_size": list(model.view_size), "inputs": [m.name for m in model.inputs]}
    write_weights(folder / WEIGHTS, {n: t.detach().cpu().contiguous() for n, t in weights.items()}, {"format": "pt"})
    write_json(folder / CONFIG, {"unveil": __version__, **output_of(model), **size, _KEY: content})


def is_head_folder(address: str | Path) -> bool:
    """Whether an address is a folder that `write_head` has written."""
    try:
        return f'"{_KEY}"' in read_text(user_path(address) / CONFIG)
    except (OSError, UnicodeDecodeError):
        return False


def read_head_folder(address: str | Path, name: str | None) -> Predictor:
    """The predictor in such a folder, on the CPU; `name` is the protocol that has trained it, if given.

    Raises ValueError for another name, and for damaged files.
    """
    folder = user_path(address)
    try:
        content = json.loads(read_text(folder / CONFIG))[_KEY]
        check_regular(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  no mapping
        described, classes = content.pop("encoder"), tuple(map(str, content.pop("classes")))
        head = KeptHead(tensors=_below(tensors, _HEAD), classes=classes, **content)
        if head.task not in get_args(Task) or head.model not in get_args(Model):
            raise ValueError(f"a {head.model!r} of {head.task!r} is not known")
        protocol = head.facts.get("protocol")
        encoder = _encoder(described, _below(tensors, _ENCODER), address)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no whole head ({type(error).__name__}: {error}); export it again") from error
    if name is not None and name != protocol:
        raise ValueError(f"{folder} holds the head {protocol}, not {name!r}")
    return predictor(head, encoder)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _encoder(described: dict[str, Any], weights: dict[str, Tensor], address: str | Path) -> ImageEncoder | PublicViT:
    made: ImageEncoder | PublicViT
    if "own" in described:
        with torch.random.fork_rng(devices=[]):
            own = StoredEncoder.read(described["own"]).build()
        if weights:
            own.load_state_dict(weights)
        made = ImageEncoder(own)
    else:
        beside = described["public"]
        files = WeightFiles(str(address), weights, beside["config"], beside["preprocessing"])
        made = encoder_of(files, "mean", True, quiet=True)
    made.transform = ImageTransform(made.modalities[0], made.image_size)
    return made
