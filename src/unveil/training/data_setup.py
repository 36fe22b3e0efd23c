"""The data of a run: opened as they were asked for, looked at, settled, and parted into training and held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..data.aligned_folders import aligned_modalities, open_samples
from ..data.inspect_aligned import AlignedInspection, inspect_samples
from ..data.inspect_images import Inspection, inspect_source
from ..data.modality_config import BUILT_IN, Declared, declare
from ..data.samples import SampleSource, origin
from ..data.sources import Source, Subset, open_source
from ..data.splits import hold_out
from ..modeling.types import Modality
from ..recipes.registry import check_modalities, default_modalities
from ..runs.console import log
from .config import PretrainConfig

Found = Inspection | AlignedInspection


def declared_for(asked: PretrainConfig, recipe: Callable[..., Any]) -> tuple[Declared, ...]:
    """The modalities that a run is to read, as asked or as its recipe has them; none for plain images.

    Raises ValueError for several where the recipe reads one, and for none that is an input.
    """
    by_default = (BUILT_IN.get(m.name, Declared(m)) for m in default_modalities(recipe) or ())
    declared = declare(asked.modalities) or tuple(by_default)
    check_modalities(recipe, [d.modality for d in declared])
    if declared and all(d.modality.role == "output" for d in declared):
        raise ValueError(f"--modalities {' '.join(d.name for d in declared)}: all are outputs; an encoder reads one")
    return declared


def open_data(address: str, declared: tuple[Declared, ...]) -> Source:
    """The source at an address: of samples with the declared maps, or of plain images where nothing is declared."""
    if declared:
        return open_samples(address, declared)
    if several := " ".join(d.name for d in aligned_modalities(address)):
        log(
            f"note: {address} has a folder for each of {several}; all are read as images. --modalities tells them apart"
        )
    return open_source(address)


def look_at(source: Source) -> Found:
    """The inspection of a source: counts, sizes, unreadable and duplicate files."""
    return inspect_samples(source) if isinstance(origin(source)[0], SampleSource) else inspect_source(source)


def settle(source: Source, found: Found) -> Source:
    """The source, its modalities as the data have settled them."""
    if isinstance(source, SampleSource) and isinstance(found, AlignedInspection):
        return source.settled(found.settle(source.declared))
    return source


def modalities_of(source: Source, found: Found) -> tuple[Modality, ...]:
    """What a recipe is to read of a source, in the order of the user; of plain images, what they look like."""
    if isinstance(found, Inspection):
        mean, std = (tuple(round(value, 4) for value in values) for values in (found.mean, found.std))
        return (Modality("rgb", found.channels, mean, tuple(max(1e-3, value) for value in std)),)
    whole = origin(source)[0]
    assert isinstance(whole, SampleSource)
    return tuple(d.modality for d in found.settle(whole.declared))


def declared_facts(source: Source) -> dict[str, Any]:
    """The modalities of a source of several maps, as `run.json` holds them; nothing for plain images."""
    return {"modalities": [d.to_dict() for d in source.declared]} if isinstance(source, SampleSource) else {}


def present(source: Source) -> dict[str, Bool[Tensor, " N"]]:
    """Which samples have each modality; nothing for plain images, which all have theirs."""
    whole, numbers = origin(source)
    if not isinstance(whole, SampleSource):
        return {}
    has = torch.tensor([whole.has(i) for i in numbers])
    return {d.name: column for d, column in zip(whole.declared, has.unbind(dim=1), strict=True)}


def part_data(source: Source, asked: PretrainConfig, seed: int) -> tuple[Subset, Subset]:
    """The source in two: to train on, and for label-free signals and pictures."""
    return hold_out(source, asked.held_out_share, seed, last=asked.held_out == "last", group_by=asked.group_by)


def check_broken(found: Found, train: Source, max_broken: float) -> None:
    """Raise ValueError when more of the images to train on are unreadable than is accepted."""
    broken = [name for name in (train.name(i) for i in range(len(train))) if name in found.unreadable]
    if len(broken) > max_broken * len(train):
        told = "; ".join(f"{name}: {found.unreadable[name]}" for name in broken[:10])
        raise ValueError(
            f"{len(broken)} of {len(train)} images of {found.address} cannot be read ({told});"
            " mend or remove them, or raise --max-broken"
        )
