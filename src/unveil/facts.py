"""What `run.json` says of a run, and how it is read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .data.aligned import AlignedSource
from .data.declaration import Declared, declared_from, modality_from
from .data.samples import SampleSource, origin
from .data.sources import EncodedSource, Source
from .encoder import Encoder
from .model import MaskedModel, Objective
from .recipe import Recipe
from .records import Layout, Modality
from .targets import Pixels
from .trainer import Settings


def data_facts(source: Source, train: Source, held_out: Source, built: Recipe, modality: Modality) -> dict[str, Any]:
    """Which images, and how they are read."""
    return {
        "address": source.address,
        "count": len(source),
        "names": names_digest(source),
        "train": len(train),
        "held_out": len(held_out),
        "image_size": list(built.view.image_size),
        "channels": modality.channels,
        "mean": list(modality.mean),
        "std": list(modality.std),
    }


def names_digest(source: Source) -> str:
    """Tells one set of images from another by their names and order, wherever they lie."""
    digest = hashlib.sha256()
    whole, numbers = origin(source)
    if not isinstance(
        whole, EncodedSource | AlignedSource
    ):  # images that are made: their names do not say how large they are
        digest.update(source.address.encode())
    for i in range(len(source)):
        digest.update(source.name(i).encode(errors="surrogateescape") + b"\0")
    if isinstance(whole, SampleSource):
        digest.update(bytes(has for i in numbers for has in whole.has(i)))
    return digest.hexdigest()[:16]


def layout_of(encoder: Encoder) -> Layout:
    """The encoder's tokens: one span of cells for each modality."""
    cells = encoder.grid[0] * encoder.grid[1]
    spans = {m.name: slice(i * cells, (i + 1) * cells) for i, m in enumerate(encoder.modalities)}
    return Layout(spans, encoder.grid)


def model_facts(model: MaskedModel) -> dict[str, Any]:
    """Parameters and tokens, counted."""

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    targets = [o.target for o in model.objectives if isinstance(o, Objective)]
    layout = layout_of(model.encoder)
    visible, predicted = model.masker.counts(layout)
    return {
        "parameters": {"encoder": count(model.encoder), "decoder": count(model) - count(model.encoder)},
        "heads": model.encoder.blocks[0].attn.heads,
        "num_tokens": layout.num_tokens,
        "num_visible": visible,
        "num_predicted": predicted,
        "norm_pix": any(isinstance(t, Pixels) and t.norm_pix for t in targets),
    }


def settings_facts(settings: Settings, batch_size: int, workers: int, processes: int = 1) -> dict[str, Any]:
    """How the run uses the machine, or the machines."""
    return asdict(settings) | {
        "processes": processes,
        "accumulation": -(-batch_size // (settings.micro_batch * processes)),
        "threads": torch.get_num_threads(),
        "workers": workers,
    }


def part(facts: Mapping[str, Any], name: str, run: Path) -> Any:
    """A part of `run.json`. Raises ValueError when it is not there."""
    if name not in facts:
        raise ValueError(f"{run / 'run.json'} is not whole: it has no {name!r}; give another run, or another --out")
    return facts[name]


def read_declared(facts: Mapping[str, Any]) -> tuple[Declared, ...]:
    """The modalities that a run was told to read, settled; none for a run of plain images."""
    return tuple(declared_from(told) for told in facts.get("modalities", ()))


def read_modalities(facts: Mapping[str, Any], run: Path) -> tuple[Modality, ...]:
    """The modalities of a run, in the order in which its recipe was given them."""
    declared = read_declared(facts)
    return tuple(d.modality for d in declared) or (modality_from(part(facts, "modality", run)),)


def read_dials(facts: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """The dials of a run; JSON has no tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in part(facts, "dials", run).items()}


def read_settings(facts: Mapping[str, Any], run: Path) -> Settings:
    """How the run used its machine."""
    told = part(facts, "settings", run)
    return Settings(**{name: told[name] for name in Settings.__dataclass_fields__})
